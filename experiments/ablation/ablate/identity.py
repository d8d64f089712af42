"""What makes two runs the same, so that results of other settings are never taken for these."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ablate.folders import RunFiles, read_json
from ablate.grid import Grid
from ablate.plain import plain
from ablate.yamlfile import read_yaml

from rca_lightning.errors import DataError, OutputError

# Where the data lies and how fast it is read changes no result.
_NO_MATTER = ("data.root", "data.num_workers", "data.pin_memory", "trainer.enable_progress_bar")


def identity(grid: Grid, row: str, further: list[str]) -> dict[str, Any]:
    """Configurations with their content, settings of the row, and what was typed for every run."""
    config = [{"file": path, "content": _content(path)} for path in grid.config]
    return {"config": config, "overrides": plain(grid.overrides(row)), "further": further}


def _content(path: str) -> Any:
    if not Path(path).is_file():
        raise DataError(
            f"configuration {path}: is not there; paths are those of the working folder, so run from the root of the "
            f"checkout, or correct config in the grid"
        )
    return plain(read_yaml(Path(path), what="configuration"))


def check_unchanged(files: RunFiles, wanted: dict[str, Any]) -> None:
    """Refuse to go on with what was begun with other settings.

    Raises:
        OutputError: with the first setting that differs and what to do.
    """
    for path in (files.result, files.settings):
        found = read_json(path)
        if found is None:
            continue
        before, now = _flat(found), _flat(wanted)
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise OutputError(
                    f"{path}: was made with {key}={before.get(key, 'not given')} and now would be with "
                    f"{now.get(key, 'not given')}; give another --out, or delete {files.result} and {files.work}"
                )


def _flat(content: dict[str, Any]) -> dict[str, Any]:
    """One entry a setting; of a path in the further words its last part, since files move."""
    flat = {key: value for part in content["config"] for key, value in _leaves(part["content"]).items()}
    flat.update(content["overrides"])
    for word in content["further"]:
        key, _, value = word[2:].partition("=")
        flat[key] = value.rstrip("/").rpartition("/")[2]
    return {key: value for key, value in flat.items() if key not in _NO_MATTER}


def _leaves(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in content.items():
        if isinstance(value, dict):
            found.update(_leaves(value, f"{prefix}{key}."))
        else:
            found[f"{prefix}{key}"] = value
    return found
