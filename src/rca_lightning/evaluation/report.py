"""The result of `rca validate`: a table to read and a JSON file to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rca_lightning.io.atomic import write_atomically


class ClassScores(Protocol):
    """Scores by class; class 0 is the background.

    Attributes:
        miou: mean IoU over the classes that take part.
        iou: `(L + 1,)`; NaN for a class that takes no part.
        precision: `(L + 1,)`.
        recall: `(L + 1,)`.
    """

    miou: float
    iou: Tensor
    precision: Tensor
    recall: Tensor


def score_content(
    scores: ClassScores,
    *,
    split: str,
    images: int,
    tags: str | None,
    class_names: Sequence[str],
    threshold: float | None = None,
    curve: Mapping[float, float] | None = None,
    classification_map: float | None = None,
) -> dict[str, Any]:
    """The content of `validate.json`; NaN becomes null.

    Args:
        scores: of the split.
        split: its name.
        images: how many were scored.
        tags: whose tags were used, "image" or "predicted"; `None`: none were.
        class_names: names of the `L` classes, without the background.
        threshold: of the background; `None` for labels, which have none.
        curve: mIoU by threshold; nothing for labels.
        classification_map: mean average precision of image probabilities; `None` where there are none.

    Raises:
        ValueError: if there are not as many names as classes.
    """
    names = ["background", *class_names]
    return {
        "split": split,
        "images": images,
        "tags": tags,
        "threshold": threshold,
        "miou": number(scores.miou),
        "curve": {f"{value:g}": number(miou) for value, miou in (curve or {}).items()},
        "per_class_iou": _by_class(names, scores.iou),
        "per_class_precision": _by_class(names, scores.precision),
        "per_class_recall": _by_class(names, scores.recall),
        "classification_map": None if classification_map is None else number(classification_map),
    }


def number(value: float) -> float | None:
    """The value, or `None` for NaN, which JSON does not know."""
    return None if value != value else value


def _by_class(names: Sequence[str], values: Tensor) -> dict[str, float | None]:
    return {name: number(value) for name, value in zip(names, values.tolist(), strict=True)}


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
