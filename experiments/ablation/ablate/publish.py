"""Results as they can be committed: small, and without the paths of one machine."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

from ablate.folders import read_json, write_json
from ablate.summary import Summary

_ABSOLUTE = re.compile(r"(?<![\w.~/:])/(?:[^\s/'\"=,:]+/)*([^\s/'\"=,:]+)/?")


def publish(summary: Summary, folder: Path, out: Path) -> None:
    """Copy the grid and the JSON of each run; nothing where they lie there already.

    Args:
        summary: the results.
        folder: where they were read.
        out: the folder of the table.
    """
    if out.resolve() == folder.resolve():
        return
    out.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(folder / "grid.yaml", out / "grid.yaml")
    for path in summary.files:
        write_json(out / "results" / path.name, _cleaned(read_json(path)))


def without_places(text: str) -> str:
    """Absolute paths shortened to their last part: `--data.root=/home/me/VOC2012` to `--data.root=VOC2012`."""
    return _ABSOLUTE.sub(r"\1", text)


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return without_places(value)
    if isinstance(value, dict):
        return {key: _cleaned(part) for key, part in value.items()}
    return [_cleaned(part) for part in value] if isinstance(value, list) else value
