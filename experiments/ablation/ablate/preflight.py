"""Everything that can be found wrong before anything runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.commandline import CommandLine, check_settings
from ablate.folders import RunFiles
from ablate.grid import Grid
from ablate.identity import check_unchanged, identity
from ablate.jobs import Chosen
from ablate.words import as_words


@dataclass(frozen=True)
class Checked:
    """What is left to run once all is known to make sense.

    Attributes:
        chosen: the runs that are wanted, without rows that only repeat the reference.
        settings: of each row all arguments as the library understands them.
        repeats: rows left out: with this configuration they are the reference itself.
    """

    chosen: list[Chosen]
    settings: dict[str, dict[str, Any]]
    repeats: list[str]


def check(grid: Grid, chosen: Sequence[Chosen], out: Path, further: Sequence[str]) -> Checked:
    """Ask the parser of the library about each row, and compare with what is on disk.

    Raises:
        RCAError: for the first mistake.
    """
    line = CommandLine()
    needed = dict.fromkeys(name for run in chosen for name in (grid.fitted_row(run.row).name, run.row))
    settings = {row: _settings(line, grid, row, further) for row in needed}
    repeats: list[str] = []
    if grid.reference is not None:
        reference = settings.get(grid.reference) or _settings(line, grid, grid.reference, further)
        repeats = [row for row in needed if settings[row] == reference and _may_repeat(grid, row)]
    left = [run for run in chosen if run.row not in repeats]
    for run in left:
        for row in {grid.fitted_row(run.row).name, run.row}:
            check_unchanged(RunFiles(out, row, run.seed), identity(grid, row, list(further)))
    return Checked(left, settings, repeats)


def _settings(line: CommandLine, grid: Grid, row: str, further: Sequence[str]) -> dict[str, Any]:
    identity(grid, row, list(further))  # reads the configurations, so that a missing one is named as that
    overrides = grid.overrides(row)
    config = [f"--config={path}" for path in grid.config]
    found = line.settings(["fit", *config, *as_words(overrides), *further], whose=row)
    check_settings(found, overrides, whose=row)
    return found


def _may_repeat(grid: Grid, row: str) -> bool:
    """Not the reference itself, and not a row that reads what was trained with other settings."""
    return row != grid.reference and grid.fitted_row(row).name in {row, grid.reference}
