"""The one JSON of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.folders import RunFiles, read_json
from ablate.grid import Grid
from ablate.identity import identity
from ablate.protocols import best, fixed
from ablate.surroundings import surroundings

_SURROUNDINGS = ("date", "hardware", "software", "commit", "dirty")


@dataclass(frozen=True)
class Describer:
    """Knows what the runs of a call have in common.

    Attributes:
        grid: their grid.
        out: the output folder.
        further: words typed for every run.
        settings: all arguments of each row as the library understands them.
        command: what was typed.
        threads: of one process.
    """

    grid: Grid
    out: Path
    further: list[str]
    settings: Mapping[str, dict[str, Any]]
    command: str
    threads: int

    def identity(self, row: str) -> dict[str, Any]:
        return identity(self.grid, row, self.further)

    def surroundings(self) -> dict[str, Any]:
        accelerators = {settings["trainer"]["accelerator"] for settings in self.settings.values()}
        return surroundings(threads=self.threads, on_cpu=accelerators == {"cpu"})

    def record(self, files: RunFiles, scores: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
        """All that is worth keeping of a run.

        Args:
            files: of the run.
            scores: by split, what `rca validate` wrote with seconds and surroundings.
        """
        row = self.grid.rows[files.row]
        fitted = self.grid.fitted_row(files.row).name
        fit = read_json(RunFiles(self.out, fitted, files.seed).fit) or {}
        checkpoint = fit.pop("checkpoint", {})
        last = max(scores.values(), key=lambda score: str(score["date"]))
        settings = self.settings[files.row]
        return {
            "row": row.name,
            "title": row.title,
            "group": row.group,
            "seed": files.seed,
            "checkpoint_of": fitted,
            **self.identity(row.name),
            "settings": {part: settings.get(part) for part in ("model", "memory", "data")},
            "epochs": settings["trainer"]["max_epochs"],
            "precision": settings["trainer"]["precision"],
            "splits": {split: self._with_protocols(scores, split) for split in scores},
            **checkpoint,
            "fit": fit or None,
            **{key: last[key] for key in _SURROUNDINGS},
            "command": self.command,
        }

    def _with_protocols(self, scores: Mapping[str, dict[str, Any]], split: str) -> dict[str, Any]:
        score = scores[split]
        protocols = {"best": best(score), "fixed": fixed(scores, split, self.grid.fixed_threshold)}
        return {**{key: value for key, value in score.items() if key not in protocols}, **protocols}
