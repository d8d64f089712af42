"""What a grid is: rows of settings over one configuration, each run with several seeds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

HALVES = ("_a", "_b")
"""Endings of the names of the halves of a split."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        name: what files and options call it.
        title: what tables and plots call it.
        group: heading under which it stands.
        settings: keys and values that it changes.
        fit: row whose checkpoints it reads; None: it trains its own.
        seeds: of its runs.
        splits: what it is scored on.
    """

    name: str
    title: str
    group: str
    settings: dict[str, Any]
    fit: str | None
    seeds: tuple[int, ...]
    splits: tuple[str, ...]


@dataclass(frozen=True)
class Grid:
    """Rows and what they have in common.

    Attributes:
        path: its file.
        title: heading of the table.
        config: configurations of the command line, later ones over earlier ones.
        common: settings of every row.
        rows: in the order of the table.
        baseline: row that the others are compared with, seed by seed.
        reference: row that the others vary, a point of each curve; None if there is none.
        fixed_threshold: background threshold that is not tuned on the split it is reported on: a number, or the split
            whose best one is taken.
        halves: whether `<split>_a` and `<split>_b` stand for the halves of a split.
    """

    path: Path
    title: str
    config: tuple[str, ...]
    common: dict[str, Any]
    rows: dict[str, Row]
    baseline: str
    reference: str | None
    fixed_threshold: float | str
    halves: bool

    def fitted_row(self, name: str) -> Row:
        """The row whose training a row reads, which is itself unless it names another."""
        row = self.rows[name]
        return row if row.fit is None else self.fitted_row(row.fit)

    def overrides(self, name: str) -> dict[str, Any]:
        """Settings of a row over the configuration: the common ones, those of the row it reads, its own."""
        row = self.rows[name]
        return {**(self.common if row.fit is None else self.overrides(row.fit)), **row.settings}

    def half_of(self, split: str) -> str | None:
        """The split that `split` is a half of; None for a split of the data set itself."""
        return split[:-2] if self.halves and split.endswith(HALVES) else None
