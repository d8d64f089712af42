"""Result files: one JSON a benchmark, and the table that is printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from measure.machine import describe_machine


@dataclass
class Result:
    """What one benchmark found.

    Attributes:
        name: of the benchmark, and of its file.
        title: what was measured, in a sentence.
        rows: one a line of the table, with the same keys each.
        targets: what was hoped for and what came, by name: `{"limit": ..., "found": ..., "met": ...}`.
        notes: further values; one that is a list of rows becomes a table of its own.
        drawings: further files by name, each drawn by a function that is given its path.
    """

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)
    drawings: dict[str, Callable[[Path], object]] = field(default_factory=dict)

    def at_most(self, name: str, found: float, limit: float) -> None:
        """Note a target that a value must not exceed."""
        self.targets[name] = {"limit": limit, "found": found, "met": found <= limit}

    def at_least(self, name: str, found: float, limit: float) -> None:
        """Note a target that a value must reach."""
        self.targets[name] = {"limit": limit, "found": found, "met": found >= limit}

    def content(self) -> dict[str, Any]:
        """Everything but the name and the drawings, as JSON values."""
        return {"title": self.title, "rows": list(self.rows), "targets": self.targets, "notes": self.notes}

    def write(self, folder: Path) -> Path:
        """Write `<name>.json` with the machine in it, and the drawings."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        path.write_text(json.dumps({"machine": describe_machine(), **self.content()}, indent=2) + "\n")
        for name, draw in self.drawings.items():
            draw(folder / name)
        return path

    def show(self, console: Console | None = None) -> None:
        """Print the table and each target under it."""
        console = console or Console()
        console.print(_table(f"{self.name}: {self.title}", self.rows))
        for name, target in self.targets.items():
            word = "met" if target["met"] else "MISSED"
            console.print(f"{name}: {_text(target['found'])} (target {_text(target['limit'])}) {word}")
        for name, note in self.notes.items():
            if isinstance(note, list) and note and isinstance(note[0], dict):
                console.print(_table(name, note))


def _table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=title)
    for column in rows[0] if rows else ():
        table.add_column(column, justify="left" if isinstance(rows[0][column], str) else "right")
    for row in rows:
        table.add_row(*(_text(value) for value in row.values()))
    return table


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
