"""Where the files of a run are."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rca_lightning.io.atomic import write_atomically


@dataclass(frozen=True)
class RunFiles:
    """Files of one row with one seed below the output folder.

    `results/` holds what is worth keeping; `work/` can be deleted when all is done.
    """

    out: Path
    row: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.row}-seed{self.seed}"

    @property
    def work(self) -> Path:
        return self.out / "work" / self.name

    @property
    def result(self) -> Path:
        """The one JSON of the run, written when all of its splits have a score."""
        return self.out / "results" / f"{self.name}.json"

    @property
    def checkpoint(self) -> Path:
        return self.work / "checkpoints" / "last.ckpt"

    @property
    def fit(self) -> Path:
        """Written when the training has ended well."""
        return self.work / "fit.json"

    @property
    def attempts(self) -> Path:
        """What was spent on the training so far, a start and an end for each attempt."""
        return self.work / "attempts.json"

    @property
    def settings(self) -> Path:
        """What the training was begun with."""
        return self.work / "settings.json"

    def scored(self, split: str) -> Path:
        """Folder of the scoring of a split."""
        return self.work / split

    def score(self, split: str) -> Path:
        """Written when the scoring of a split has ended well."""
        return self.scored(split) / "score.json"


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def read_json(path: Path) -> Any:
    """The content of a file, None if there is no such file."""
    return json.loads(path.read_text()) if path.is_file() else None
