"""The one form in which scores of a split are written to JSON, whatever was scored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from torch import Tensor


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
