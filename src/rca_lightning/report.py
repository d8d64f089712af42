"""The result of `rca validate`: a table to read and a JSON file to keep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from rca_lightning.atomic import write_atomically

_TAGS = {"image": "true tags", "predicted": "predicted tags"}


def write_report(result: dict[str, Any], path: Path) -> None:
    """Write `validate.json` whole or not at all."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def print_report(result: dict[str, Any], console: Console | None = None) -> None:
    """Print scores by class under a line that says of what they are.

    Args:
        result: see `EvaluationResult.as_dict` for seeds, `LabelScores.as_dict` for labels, which have no threshold.
        console: where to print; default standard output.
    """
    console = console or Console()
    what = "Labels" if result["threshold"] is None else "Seeds"
    tags = f", {_TAGS[result['tags']]}" if result["tags"] is not None else ""
    table = Table(title=f"{what} of split {result['split']!r}, {result['images']} images{tags}")
    table.add_column("class")
    for column in ("IoU", "precision", "recall"):
        table.add_column(column, justify="right")
    for name, iou in result["per_class_iou"].items():
        others = (result["per_class_precision"][name], result["per_class_recall"][name])
        table.add_row(Text(name), *(_percent(value) for value in (iou, *others)))
    table.add_section()
    table.add_row("mean", f"[bold]{_percent(result['miou'])}[/bold]", "", "")
    console.print(table)
    if result["threshold"] is not None:
        classification = _percent(result["classification_map"])
        console.print(f"background threshold {result['threshold']:g}, classification mAP {classification}")
    if result.get("ignored"):
        console.print(f"{_percent(result['ignored'])} % of the pixels have no label")


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
