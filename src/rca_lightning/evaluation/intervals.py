"""Bootstrap over images: the interval of a mean IoU, and of the difference of two on the same images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.image_counts import Floats, ImageCounts, Integers, mean_iou

LEVEL = 0.95
DRAWS = 1000
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A number, and what it is in the middle 95 % of the draws.

    Attributes:
        value: of the images themselves.
        low: lower end; NaN if no draw has a value.
        high: upper end.
        draws: how many there were.
        images: in each of them.
    """

    value: float
    low: float
    high: float
    draws: int
    images: int


def miou_interval(counts: ImageCounts, threshold: float | None, *, draws: int = DRAWS, seed: int = SEED) -> Interval:
    """Mean IoU of images and its percentile interval: how much it may owe to which images were scored.

    A draw takes as many images as there are, with replacement, and scores them from one confusion matrix.

    Args:
        counts: of the images.
        threshold: background threshold; `None` for label images.
        draws: 1 or more.
        seed: of the draws; of one number of images they are always the same.

    Raises:
        ArgumentError: for no draw, or a threshold that was not counted.
    """
    weights = _weights(len(counts.ids), draws, seed)
    return _interval(_drawn_miou(counts, threshold, weights), draws, len(counts.ids))


def paired_difference(
    first: ImageCounts,
    second: ImageCounts,
    thresholds: tuple[float | None, float | None],
    *,
    draws: int = DRAWS,
    seed: int = SEED,
) -> Interval:
    """Mean IoU of the second less that of the first, and its interval; each draw takes the same images of both.

    What makes images hard for both cancels out, so this is narrower than the intervals of the two.

    Args:
        first: counts of one run.
        second: counts of another.
        thresholds: background threshold of each; `None` for label images.
        draws: 1 or more.
        seed: of the draws.

    Raises:
        ArgumentError: if the images or the number of classes differ, for no draw, or another threshold.
    """
    if first.ids != second.ids:
        problem = f"{len(second.ids)} images, of which {len(set(second.ids) - set(first.ids))} are not in the first"
        raise ArgumentError("second", problem, "only runs on the same images can be paired; score them on one split")
    if first.num_classes != second.num_classes:
        problem = f"{second.num_classes} classes, {first.num_classes} in the first"
        raise ArgumentError("second", problem, "only runs with the same classes can be paired")
    weights = _weights(len(first.ids), draws, seed)
    one, other = (
        _drawn_miou(counts, threshold, weights) for counts, threshold in zip((first, second), thresholds, strict=True)
    )
    return _interval(other - one, draws, len(first.ids))


def best_thresholds(counts: ImageCounts, *, draws: int = DRAWS, seed: int = SEED) -> tuple[Floats, Floats]:
    """Background threshold of seeds with the best mean IoU, of each draw; and the curve of the images themselves.

    Args:
        counts: of the images.
        draws: 1 or more.
        seed: of the draws.

    Returns:
        `(draws,)` the best threshold of each draw, the lowest of several; and `(T,)` mean IoU by threshold.

    Raises:
        ArgumentError: for no draw.
    """
    weights = _weights(len(counts.ids), draws, seed)
    curves = np.stack([_drawn_miou(counts, threshold, weights) for threshold in counts.thresholds], axis=1)
    thresholds = np.array(counts.thresholds)
    return thresholds[np.nan_to_num(curves[1:], nan=-1.0).argmax(axis=1)], curves[0]


def _weights(images: int, draws: int, seed: int) -> Integers:
    """How often each image is in each draw, `(1 + draws, I)`; the first takes each once."""
    if draws < 1:
        raise ArgumentError("draws", draws, "give 1 or more")
    generator = np.random.default_rng(seed)
    rows = [np.ones(images, dtype=np.int16)]
    for _ in range(draws):
        rows.append(np.bincount(generator.integers(images, size=images), minlength=images).astype(np.int16))  # noqa: PERF401
    return np.stack(rows)


def _drawn_miou(counts: ImageCounts, threshold: float | None, weights: Integers) -> Floats:
    """Mean IoU `(1 + draws,)`."""
    sums = np.zeros((len(weights), 3 * (counts.num_classes + 1)))
    for rows, parts in counts.by_image(threshold):
        sums += weights[:, rows].astype(np.float64) @ parts.reshape(len(parts), -1)
    hit, true, drawn = np.moveaxis(sums.reshape(len(weights), 3, -1), 1, 0)
    return mean_iou(hit, true, drawn)


def _interval(values: Floats, draws: int, images: int) -> Interval:
    known = values[1:][~np.isnan(values[1:])]
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(known, [tail, 1 - tail]) if len(known) else (np.nan, np.nan)
    return Interval(value=float(values[0]), low=float(low), high=float(high), draws=draws, images=images)
