"""Scores of a split: the numbers by class, as a table to read and as a JSON file to keep."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rca_lightning.evaluation.mask_classes import MaskClassCounts
from rca_lightning.io.atomic import write_atomically

TAG_SCORES = ("classification_map", "tag_f1", "tag_f1_macro", "tag_calibration_error")
"""Scores of image probabilities and predicted tags."""


@dataclass(kw_only=True)
class Scores:
    """Scores of one split; class 0 is the background.

    Attributes:
        images: how many were scored.
        miou: mean IoU over the classes that occur in the masks or the predictions.
        iou: `(L + 1,)`; NaN for a class in neither.
        precision: `(L + 1,)`; NaN for a class never drawn.
        recall: `(L + 1,)`; NaN for a class in no mask.
        threshold: background threshold of the seeds; `None` for label images.
        curve: mIoU by background threshold; empty for label images.
        classification_map: mean average precision of the image probabilities; `None` where there are none.
        tag_f1: F1 of the tags predicted from them, over all pairs of image and class (micro); see `tag_f1_scores`.
        tag_f1_macro: the mean of the F1 of single classes.
        tag_calibration_error: see `tag_calibration_error`.
        ignored: share of the scored pixels that are 255 in the label images, NaN if none was scored; `None` for seeds.
        mask_classes: in how many of the masks each class is; `None` if that was not counted.
    """

    images: int
    miou: float
    iou: Tensor
    precision: Tensor
    recall: Tensor
    threshold: float | None = None
    curve: Mapping[float, float] = field(default_factory=dict)
    classification_map: float | None = None
    tag_f1: float | None = None
    tag_f1_macro: float | None = None
    tag_calibration_error: float | None = None
    ignored: float | None = None
    mask_classes: MaskClassCounts | None = None

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """Sentences on classes that the masks never show; see `MaskClassCounts`."""
        return [] if self.mask_classes is None else self.mask_classes.warnings(class_names)

    def line(self) -> str:
        """The scores over all classes, in percent."""
        parts = [f"mIoU {_percent(_number(self.miou))}"]
        if self.threshold is not None:
            parts.append(f"background threshold {self.threshold:g}")
        if self.classification_map is not None:
            parts.append(f"classification mAP {_percent(_number(self.classification_map))}")
        if self.tag_f1 is not None:
            parts.append(f"F1 of predicted tags {_percent(_number(self.tag_f1))}")
        return ", ".join(parts)

    def logged(self, tags: str, prefix: str) -> dict[str, Any]:
        """Scores of seeds for the logger; the name says whose tags were used."""
        values = (self.miou, self.threshold, *(getattr(self, name) for name in TAG_SCORES))
        return dict(zip(self.logged_names(tags, prefix), values, strict=True))

    @staticmethod
    def logged_names(tags: str, prefix: str) -> tuple[str, ...]:
        """Names of `logged`."""
        names = f"seed_miou/{tags}_tags", f"seed_threshold/{tags}_tags", *TAG_SCORES
        return tuple(f"{prefix}/{name}" for name in names)

    def as_dict(self, *, split: str, class_names: Sequence[str], tags: str | None = None) -> dict[str, Any]:
        """Content of `validate.json`; NaN becomes null.

        Args:
            split: name of the split.
            class_names: names of the `L` classes, without the background.
            tags: whose tags were used, "image" or "predicted"; `None`: none were.

        Raises:
            ValueError: if there are not as many names as classes.
        """
        names = ["background", *class_names]
        by_class = {
            f"per_class_{name}": {
                label: _number(value) for label, value in zip(names, getattr(self, name).tolist(), strict=True)
            }
            for name in ("iou", "precision", "recall")
        }
        content = {
            "split": split,
            "images": self.images,
            "tags": tags,
            "threshold": self.threshold,
            "miou": _number(self.miou),
            "curve": {f"{threshold:g}": _number(miou) for threshold, miou in self.curve.items()},
            **by_class,
            "classification_map": _number(self.classification_map),
        }
        if self.tag_f1 is not None:
            content |= {name: _number(getattr(self, name)) for name in TAG_SCORES}
        return content if self.ignored is None else {**content, "ignored": _number(self.ignored)}


def class_scores(confusion: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """IoU, precision and recall by class, each `(..., C)`; 0 / 0 is NaN: the class takes no part.

    Args:
        confusion: pixels by true and drawn class, `(..., C, C)`, or `(..., C, C + 1)` if the last ones are not drawn.
    """
    matrix = confusion.double()
    hit = matrix.diagonal(dim1=-2, dim2=-1)
    true, drawn = matrix.sum(-1), matrix[..., : matrix.shape[-2]].sum(-2)
    return hit / (true + drawn - hit), hit / drawn, hit / true


def write_report(result: dict[str, Any], path: Path) -> None:
    """Writes a JSON file whole or not at all; NaN is refused."""
    text = json.dumps(result, indent=2, allow_nan=False) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def print_report(result: dict[str, Any], console: Console | None = None) -> None:
    """Prints scores by class under a title that names the split.

    Args:
        result: see `Scores.as_dict`.
        console: where to print; default standard output.
    """
    console = console or Console()
    predictions = "Labels" if result["threshold"] is None else "Seeds"
    tags = {None: "", "image": ", true tags", "predicted": ", predicted tags"}[result["tags"]]
    # Not the title of the table, which would be broken to its width.
    console.print(f"{predictions} of split {result['split']!r}, {result['images']} images{tags}", highlight=False)
    table = Table()
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
        if "tag_f1" in result:
            micro, macro, error = (_percent(result[name]) for name in TAG_SCORES[1:])
            console.print(f"predicted tags: F1 {micro}, mean F1 of classes {macro}, calibration error {error}")
    if result.get("ignored"):
        console.print(f"{_percent(result['ignored'])} % of the pixels have no label")


def _number(value: float | None) -> float | None:
    return None if value != value else value  # JSON has no NaN


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
