"""Result files: one JSON a benchmark, and the table that is printed."""

from __future__ import annotations

import json
from collections.abc import Sequence
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
        notes: further values.
    """

    name: str
    title: str
    rows: Sequence[dict[str, Any]]
    targets: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def at_most(self, name: str, found: float, limit: float) -> None:
        """Note a target that a value must not exceed."""
        self.targets[name] = {"limit": limit, "found": found, "met": found <= limit}

    def at_least(self, name: str, found: float, limit: float) -> None:
        """Note a target that a value must reach."""
        self.targets[name] = {"limit": limit, "found": found, "met": found >= limit}

    def write(self, folder: Path) -> Path:
        """Write `<name>.json` with the machine in it."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{self.name}.json"
        content = {
            "title": self.title,
            "machine": describe_machine(),
            "rows": list(self.rows),
            "targets": self.targets,
            "notes": self.notes,
        }
        path.write_text(json.dumps(content, indent=2) + "\n")
        return path

    def show(self, console: Console | None = None) -> None:
        """Print the table, and each target under it."""
        console = console or Console()
        table = Table(title=f"{self.name}: {self.title}")
        for column in self.rows[0] if self.rows else ():
            table.add_column(column, justify="left" if isinstance(self.rows[0][column], str) else "right")
        for row in self.rows:
            table.add_row(*(_text(value) for value in row.values()))
        console.print(table)
        for name, target in self.targets.items():
            word = "met" if target["met"] else "MISSED"
            console.print(f"{name}: {_text(target['found'])} (target {_text(target['limit'])}) {word}")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return str(value)
