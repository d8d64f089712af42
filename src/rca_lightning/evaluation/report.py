"""Scores of a split: the numbers by class, as a table to read and as a JSON file to keep."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.evaluation.breakdown import background_confusion, scores_by_size, trimap_miou
from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.intervals import LEVEL, SEED, miou_interval
from rca_lightning.evaluation.mask_classes import MaskClassCounts
from rca_lightning.evaluation.protocol import TAGS_IN_WORDS, ThresholdSource
from rca_lightning.io.atomic import write_atomically

TagsUsed = Literal["image", "predicted", "none"]
"""Whose tags chose the classes of a photograph: its own, those that the network predicts, or none did."""

_TAGS: dict[str, str] = {"image": "_true_tags", "predicted": "_predicted_tags", "none": ""}

TAG_SCORES = ("classification_map", "tag_f1", "tag_f1_macro", "tag_calibration_error")
"""Scores of image probabilities and predicted tags."""
BACKGROUND_SHARES = ("drawn_as_background", "drawn_on_background", "drawn_on_others")
"""Shares of the pixels of a class, and of the pixels drawn as it; see `background_confusion`."""


@check_arguments
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
        threshold_source: how it was chosen; `None` for label images.
        oracle_threshold: the threshold with the best mIoU on these very masks; `None` for label images.
        oracle_miou: mIoU there, which no choice without masks can exceed.
        curve: mIoU by background threshold; empty for label images.
        classification_map: mean average precision of the image probabilities; `None` where there are none.
        tag_f1: F1 of the tags predicted from them, over all pairs of image and class (micro); see `tag_f1_scores`.
        tag_f1_macro: the mean of the F1 of single classes.
        tag_calibration_error: see `tag_calibration_error`.
        ignored: share of the scored pixels that are 255 in the label images, NaN if none was scored; `None` for seeds.
        mask_classes: in how many of the masks each class is; `None` if that was not counted.
        image_counts: of each image, for intervals and what else is derived from single images; `None` if not counted.
    """

    images: int
    miou: float
    iou: Tensor
    precision: Tensor
    recall: Tensor
    threshold: float | None = None
    threshold_source: ThresholdSource | None = None
    oracle_threshold: float | None = None
    oracle_miou: float | None = None
    curve: Mapping[float, float] = field(default_factory=dict)
    classification_map: float | None = None
    tag_f1: float | None = None
    tag_f1_macro: float | None = None
    tag_calibration_error: float | None = None
    ignored: float | None = None
    mask_classes: MaskClassCounts | None = None
    image_counts: ImageCounts | None = None

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """Sentences on classes that the masks never show; see `MaskClassCounts`."""
        return [] if self.mask_classes is None else self.mask_classes.warnings(class_names)

    def line(self) -> str:
        """The scores over all classes, in percent."""
        parts = [f"mIoU {_percent(_number(self.miou))}"]
        if self.threshold is not None:
            parts.append(f"background threshold {self.threshold:g}")
        if self.oracle_miou is not None and self.threshold_source is not None:
            parts.append(f"oracle {_percent(_number(self.oracle_miou))} at {self.oracle_threshold:g}")
        if self.classification_map is not None:
            parts.append(f"classification mAP {_percent(_number(self.classification_map))}")
        if self.tag_f1 is not None:
            parts.append(f"F1 of predicted tags {_percent(_number(self.tag_f1))}")
        return ", ".join(parts)

    @check_arguments
    def logged(self, tags: TagsUsed, prefix: str) -> dict[str, Any]:
        """Scores of seeds for the logger; the name says whose tags were used. Only the oracle rests on the masks."""
        values = (self.miou, self.threshold, self.oracle_miou, *(getattr(self, name) for name in TAG_SCORES))
        return dict(zip(self.logged_names(tags, prefix), values, strict=True))

    @staticmethod
    @check_arguments
    def logged_names(tags: TagsUsed, prefix: str) -> tuple[str, ...]:
        """Names of `logged`."""
        scores = (metric_name(prefix, name, tags) for name in ("miou", "threshold"))
        return (*scores, metric_name(prefix, "miou", tags, oracle=True), *(f"{prefix}/{name}" for name in TAG_SCORES))

    def as_dict(
        self,
        *,
        split: str,
        class_names: Sequence[str],
        tags: str | None = None,
        protocol: Mapping[str, Any] | None = None,
        without_network: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Content of `validate.json`; NaN becomes null.

        With `image_counts` it has the bootstrap interval of the mIoU, mIoU by size and near outlines, and confusion
        with the background.

        Args:
            split: name of the split.
            class_names: names of the `L` classes, without the background.
            tags: whose tags were used, "image", "predicted" or "mixed"; `None`: none were.
            protocol: what the score rests on; see `make_protocol`.
            without_network: scores of guesses on the same masks; see `baseline_scores`.

        Raises:
            ValueError: if there are not as many names as classes.
        """
        names = ["background", *class_names]
        by_class = {
            f"per_class_{name}": _by_name(names, getattr(self, name).tolist())
            for name in ("iou", "precision", "recall")
        }
        oracle = {"oracle_threshold": self.oracle_threshold, "oracle_miou": _number(self.oracle_miou)}
        content = {
            "split": split,
            "images": self.images,
            "tags": tags,
            "threshold": self.threshold,
            "miou": _number(self.miou),
            **({} if self.threshold is None else oracle),
            "curve": {f"{threshold:g}": _number(miou) for threshold, miou in self.curve.items()},
            **by_class,
            "classification_map": _number(self.classification_map),
        }
        if self.tag_f1 is not None:
            content |= {name: _number(getattr(self, name)) for name in TAG_SCORES}
        if self.ignored is not None:
            content["ignored"] = _number(self.ignored)
        if self.image_counts is not None:
            content |= _from_images(self.image_counts, self.threshold, names)
        if without_network is not None:
            content["without_network"] = dict(without_network)
        return content if protocol is None else {**content, "protocol": dict(protocol)}


def _from_images(counts: ImageCounts, threshold: float | None, names: Sequence[str]) -> dict[str, Any]:
    """What is derived from single images."""
    interval = miou_interval(counts, threshold)
    sizes = scores_by_size(counts, threshold)
    shares = {
        f"per_class_{name}": _by_name(names, values.tolist())
        for name, values in zip(BACKGROUND_SHARES, background_confusion(counts, threshold).values(), strict=True)
    }
    return {
        "miou_interval": {
            "low": _number(interval.low),
            "high": _number(interval.high),
            "level": LEVEL,
            "draws": interval.draws,
            "seed": SEED,
        },
        "trimap_miou": _number(trimap_miou(counts, threshold)),
        "miou_by_size": {name: {**found, "miou": _number(found["miou"])} for name, found in sizes.items()},
        **shares,
    }


def _by_name(names: Sequence[str], values: Sequence[float]) -> dict[str, float | None]:
    return {name: _number(value) for name, value in zip(names, values, strict=True)}


@check_arguments
def metric_name(prefix: str, name: str, tags: TagsUsed, *, oracle: bool = False) -> str:
    """Name under which a logger gets a score: it says whose tags were used, and whether masks chose the threshold.

    Args:
        prefix: "val" or "test".
        name: of the score.
        tags: whose tags were used.
        oracle: whether the threshold is the best one on the masks that are scored.

    Example:
        >>> metric_name("val", "miou", "image"), metric_name("val", "miou", "predicted", oracle=True)
        ('val/miou_true_tags', 'val/miou_predicted_tags_oracle')
        >>> metric_name("val", "miou", "none")
        'val/miou'
    """
    return f"{prefix}/{name}{_TAGS[tags]}{'_oracle' if oracle else ''}"


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
    tags = "" if result["tags"] is None else f", {TAGS_IN_WORDS[result['tags']]}"
    # Not the title of the table, which would be broken to its width.
    console.print(f"{predictions} of split {result['split']!r}, {result['images']} images{tags}", highlight=False)
    console.print(_table(result))
    for line in score_lines(result):
        console.print(line, highlight=False, markup=False)


def _table(result: Mapping[str, Any]) -> Table:
    """Scores by class; the last two columns are of `background_confusion`."""
    columns = {"IoU": "iou", "precision": "precision", "recall": "recall"}
    if "per_class_drawn_as_background" in result:
        columns |= {"lost to bg": "drawn_as_background", "from bg": "drawn_on_background"}
    table = Table()
    table.add_column("class", overflow="fold")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for name in result["per_class_iou"]:
        table.add_row(Text(name), *(_percent(result[f"per_class_{key}"][name]) for key in columns.values()))
    table.add_section()
    table.add_row("mean", f"[bold]{_percent(result['miou'])}[/bold]", *[""] * (len(columns) - 1))
    return table


def score_lines(result: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is said below the table of classes: interval, threshold, oracle, sizes, outlines.

    Args:
        result: see `Scores.as_dict`.
    """
    if "miou_interval" in result:
        yield f"mIoU {_percent(result['miou'])}, {in_words(result['miou_interval'])}"
    threshold, source = result["threshold"], result.get("protocol", {}).get("threshold")
    if threshold is not None:
        how = f" ({source})" if source else ""
        yield f"background threshold {threshold:g}{how}, classification mAP {_percent(result['classification_map'])}"
        if result.get("oracle_threshold") is not None:
            best = f"mIoU {_percent(result['oracle_miou'])} at {result['oracle_threshold']:g}"
            yield f"oracle (best threshold on these masks): {best}"
        if "tag_f1" in result:
            micro, macro, error = (_percent(result[name]) for name in TAG_SCORES[1:])
            yield f"predicted tags: F1 {micro}, mean F1 of classes {macro}, calibration error {error}"
    if "without_network" in result:
        guesses = result["without_network"]
        told = (f"{name.replace('_', ' ')} {_percent(found['miou'])}" for name, found in guesses.items())
        yield f"without a network, true tags: {', '.join(told)}"
    if "miou_by_size" in result:
        groups = (
            f"{name} {_percent(found['miou'])} ({found['pairs']})" for name, found in result["miou_by_size"].items()
        )
        yield f"objects by size: {', '.join(groups)}"
        yield f"near outlines (trimap): mIoU {_percent(result['trimap_miou'])}"
    if result.get("ignored"):
        yield f"{_percent(result['ignored'])} % of the pixels have no label"


def in_words(interval: Mapping[str, Any]) -> str:
    """An interval of a mIoU in a score file, in percent."""
    ends = " to ".join(_percent(interval[end]) for end in ("low", "high"))
    return f"{100 * interval['level']:g} % interval over images {ends}"


def _number(value: float | None) -> float | None:
    return None if value != value else value  # JSON has no NaN


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"
