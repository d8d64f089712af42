"""Confidence of pseudo labels, estimated without any mask."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from rca_lightning.constants import IGNORE_INDEX

LOOK_AT = 100
"""Most images that `quality.json` names for a human to look at."""

_NEARLY_NOTHING = 0.002  # of the photograph: 375 pixels of 375 x 500
_NEARLY_ALL = 0.98


@dataclass(frozen=True)
class LabelQuality:
    """Quality of one pseudo label.

    Attributes:
        image_id: of the photograph.
        confidence: in `[0, 1]`, see `label_confidence`.
        classes: class of each tag that was drawn or should have been.
        coverage: share of the photograph that each of them has.
        probabilities: image probability of each of them.
        ignored: share of the photograph that is undecided.
    """

    image_id: str
    confidence: float
    classes: tuple[int, ...]
    coverage: tuple[float, ...]
    probabilities: tuple[float, ...]
    ignored: float = 0.0

    def reasons(self, class_names: Sequence[str], *, doubted: float = 0.5) -> list[str]:
        """Reasons to look at the label, in words; often none."""
        reasons = []
        for index, share, probability in zip(self.classes, self.coverage, self.probabilities, strict=True):
            if share < _NEARLY_NOTHING:
                reasons.append(f"{class_names[index]} is hardly drawn")
            if probability < doubted:
                reasons.append(f"the network doubts {class_names[index]} ({probability:.2f})")
        if not self.classes:
            reasons.append("no class")
        elif sum(self.coverage) > _NEARLY_ALL:
            reasons.append("no background")
        if self.ignored > 0.5:
            reasons.append(f"{100 * self.ignored:.0f} % undecided")
        return reasons


def label_confidence(label: Tensor, evidence: Tensor, classes: Tensor) -> float:
    """Confidence of a label image: the share of the evidence that agrees with it.

    At each pixel, the evidence for its label is the share of that score in the sum of all. It is averaged over the
    pixels of the background and over those of each class, and then over these, so that a small object counts as much
    as a wide background. A class that is not drawn counts as 0; undecided pixels do not count.

    The evidence is that from before `dense_crf`, whose marginals are near 0 or 1 also where they are wrong.

    Args:
        label: `(H, W)` integer: 0 background, class + 1, 255 undecided.
        evidence: `(1 + K, H, W)`, 0 or above, the background first.
        classes: `(K,)`, class of each further score.

    Returns:
        In `[0, 1]`: 1 where nothing speaks for anything else, 0 without a class.

    Example:
        >>> evidence = torch.tensor([[[0.5, 0.5, 0.5]], [[0.0, 0.5, 1.5]]])
        >>> label_confidence(torch.tensor([[0, 0, 8]]), evidence, torch.tensor([7]))
        0.75
    """
    if len(classes) == 0:
        return 0.0
    scores = evidence.float()
    total = scores.sum(0).clamp_min(torch.finfo(torch.float32).tiny)
    means: list[float] = []
    for value, score in zip([0, *(classes + 1).tolist()], scores, strict=True):
        drawn = label == value
        if drawn.any():
            means.append(float((score / total)[drawn].double().mean()))
        elif value > 0:
            means.append(0.0)
    return sum(means) / len(means)


def label_quality(
    image_id: str, label: Tensor, evidence: Tensor, classes: Tensor, probabilities: Tensor
) -> LabelQuality:
    """Measures one pseudo label; see `label_confidence` and `LabelQuality` for the arguments."""
    counts = torch.bincount(label.flatten().long(), minlength=IGNORE_INDEX + 1).double() / label.numel()
    kept = classes.long().cpu()
    return LabelQuality(
        image_id=image_id,
        confidence=label_confidence(label, evidence, kept),
        classes=tuple(kept.tolist()),
        coverage=tuple(counts[kept + 1].tolist()),
        probabilities=tuple(probabilities.float().tolist()),
        ignored=float(counts[IGNORE_INDEX]),
    )


def quality_report(labels: Sequence[LabelQuality], class_names: Sequence[str]) -> dict[str, Any]:
    """Content of `quality.json`: the spread of the confidence, and the images that a human should look at.

    Images with a reason to look at come first, then the others by rising confidence.
    """
    reasons = {label.image_id: label.reasons(class_names) for label in labels}
    order = sorted(labels, key=lambda label: (not reasons[label.image_id], label.confidence, label.image_id))
    values = torch.tensor([label.confidence for label in labels], dtype=torch.float64)
    quantiles = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    spread = torch.quantile(values, quantiles).tolist() if len(values) else [None] * 3
    return {
        "images": len(labels),
        "confidence": {
            "mean": float(values.mean()) if len(values) else None,
            **dict(zip(("10 %", "median", "90 %"), spread, strict=True)),
        },
        "odd": sum(map(bool, reasons.values())),
        "look_at": [
            {"image_id": label.image_id, "confidence": round(label.confidence, 4), "reasons": reasons[label.image_id]}
            for label in order[:LOOK_AT]
        ],
    }
