"""The results of a grid, row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.folders import read_json
from ablate.grid import Grid, Row
from ablate.gridfile import load_grid
from ablate.protocols import best, fixed
from ablate.spread import spread

from rca_lightning.errors import DataError


@dataclass(frozen=True)
class RowResults:
    """What the runs of a row gave, each number by seed.

    Attributes:
        row: the row.
        runs: JSON of each seed.
    """

    row: Row
    runs: dict[int, dict[str, Any]]

    def best(self, split: str) -> dict[int, float]:
        """mIoU in percent at the best threshold of each run."""
        return self._each(lambda run: run["splits"].get(split) and 100 * best(run["splits"][split])["miou"])

    def fixed(self, split: str, threshold: float | str) -> dict[int, float]:
        """mIoU in percent at a threshold that was not tuned on this split."""

        def of(run: dict[str, Any]) -> float | None:
            found = fixed(run["splits"], split, threshold) if split in run["splits"] else None
            return None if found is None else 100 * float(found["miou"])

        return self._each(of)

    def cosine(self) -> dict[int, float]:
        """Mean cosine between prototypes of a class, where the row has prototypes."""
        return self._each(lambda run: (run.get("prototypes") or {}).get("within_class_cosine"))

    def diagnostic(self, measure: str) -> dict[int, float]:
        """Mean over the classes of a measure that the memory's callback kept, such as `coverage`."""

        def of(run: dict[str, Any]) -> float | None:
            by_class = (run.get("diagnostics") or {}).values()
            found = spread(c[measure] for c in by_class if isinstance(c, dict) and c.get(measure) is not None)
            return None if found is None else found.mean

        return self._each(of)

    def cpu_minutes(self) -> dict[int, float]:
        """Processor time of its trainings where all of it was measured; nothing for a row that only reads."""
        if self.row.fit is not None:
            return {}
        return self._each(lambda run: run["fit"]["cpu_seconds"] / 60 if (run["fit"] or {}).get("complete") else None)

    @property
    def interrupted(self) -> bool:
        """Whether a training was, so that its processor time holds work done twice, or lacks some."""
        return any(run["fit"] and run["fit"]["attempts"] > 1 for run in self.runs.values())

    def value(self, key: str) -> Any:
        """What the row has for a setting, its own or that of the configuration; None if that is not known."""
        run = next(iter(self.runs.values()))
        part: Any = run["settings"]
        for name in key.split("."):
            part = part.get(name) if isinstance(part, dict) else None
        return run["overrides"].get(key) if part is None else part

    def _each(self, measure: Callable[[dict[str, Any]], float | None]) -> dict[int, float]:
        found = {seed: measure(run) for seed, run in sorted(self.runs.items())}
        return {seed: value for seed, value in found.items() if value is not None}


@dataclass(frozen=True)
class Summary:
    """All results of a grid that are there.

    Attributes:
        grid: the grid.
        rows: rows with a result, in the order of the grid.
        files: the JSON files.
    """

    grid: Grid
    rows: dict[str, RowResults]
    files: list[Path]

    @property
    def splits(self) -> list[str]:
        """Splits with a score, in the order in which they are first met."""
        runs = [run for results in self.rows.values() for run in results.runs.values()]
        return list(dict.fromkeys(split for run in runs for split in run["splits"]))

    @property
    def baseline(self) -> RowResults | None:
        return self.rows.get(self.grid.baseline)

    @property
    def reference(self) -> RowResults | None:
        return self.rows.get(self.grid.reference) if self.grid.reference else None

    def groups(self) -> dict[str, list[RowResults]]:
        """Rows by group, in the order in which the groups are first met."""
        found: dict[str, list[RowResults]] = {}
        for results in self.rows.values():
            found.setdefault(results.row.group, []).append(results)
        return found

    def repeats_reference(self, row: Row) -> bool:
        """Whether all that a row sets is what the reference has anyway."""
        reference = self.reference
        return reference is not None and all(reference.value(key) == value for key, value in row.settings.items())

    def varied(self, group: str) -> str | None:
        """The one setting that each row of a group changes; None if they change different ones."""
        keys = [set(row.settings) for row in self.grid.rows.values() if row.group == group]
        return next(iter(keys[0])) if all(len(k) == 1 and k == keys[0] for k in keys) else None


def read_results(folder: Path) -> Summary:
    """The results below the output folder of `run.py`, or below a folder that `table.py` made.

    Raises:
        DataError: there is no grid, or no result of it.
    """
    grid = load_grid(folder / "grid.yaml")
    runs: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in grid.rows}
    files: list[Path] = []
    for path in sorted((folder / "results").glob("*.json")):
        run = read_json(path)
        if run["row"] in runs:
            runs[run["row"]][int(run["seed"])] = run
            files.append(path)
    if not files:
        raise DataError(f"{folder / 'results'}: holds no result of a row of {folder / 'grid.yaml'}; run run.py first")
    return Summary(grid, {name: RowResults(grid.rows[name], found) for name, found in runs.items() if found}, files)
