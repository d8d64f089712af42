"""Two ways to read the threshold of a score: the best one, and one that was not tuned on the split itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def best(score: Mapping[str, Any]) -> dict[str, float]:
    """Threshold with the highest mIoU of the curve; the lowest of equals."""
    curve = _curve(score)
    threshold = min(curve, key=lambda t: (-curve[t], t))
    return {"threshold": threshold, "miou": curve[threshold]}


def fixed(scores: Mapping[str, Mapping[str, Any]], split: str, threshold: float | str) -> dict[str, Any] | None:
    """mIoU of a split at a threshold given as a number, or found best on another split.

    Args:
        scores: of each split, what `rca validate` wrote.
        split: whose mIoU.
        threshold: the number, or the name of the split to take it from.

    Returns:
        None if that split was not scored.
    """
    if isinstance(threshold, str):
        if threshold not in scores:
            return None
        return _at(scores[split], best(scores[threshold])["threshold"], threshold)
    return _at(scores[split], threshold, None)


def _at(score: Mapping[str, Any], threshold: float, source: str | None) -> dict[str, Any] | None:
    curve = _curve(score)
    if threshold not in curve:
        return None
    return {"threshold": threshold, "miou": curve[threshold], "chosen_on": source}


def _curve(score: Mapping[str, Any]) -> dict[float, float]:
    return {float(threshold): miou for threshold, miou in score["curve"].items() if miou is not None}
