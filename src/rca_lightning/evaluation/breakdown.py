"""Where a score comes from: size of the objects, outlines, and confusion with the background."""

from __future__ import annotations

from typing import Any

import numpy as np

from rca_lightning.evaluation.image_counts import Floats, ImageCounts, mean_iou

SIZES = {"small": 1 / 32, "medium": 1 / 8, "large": 1.0}
"""Groups of pairs of image and class by the share of the scored pixels that are of the class: below the first bound,
from there to below the second, and from there on."""


def scores_by_size(counts: ImageCounts, threshold: float | None) -> dict[str, dict[str, Any]]:
    """Mean IoU of the classes where they cover little, some or much of an image.

    The group of an image and a class in its mask follows from the share of the scored pixels that are of that class,
    which several objects may make up. Of each class, intersection and union are summed over the images of a group, and
    the mean is over the classes that are in it. Images without the class are in no group, so what is drawn in them by
    mistake lowers none of these numbers; the background is no object.

    Args:
        counts: of the images.
        threshold: background threshold; `None` for label images.

    Returns:
        By group "miou", NaN where no image is in it, and "pairs", images and classes in it.
    """
    bounds = np.array([*SIZES.values()])[:-1]
    sums = np.zeros((len(SIZES), 3, counts.num_classes))
    pairs = np.zeros(len(SIZES), dtype=np.int64)
    for _, parts in counts.by_image(threshold):
        true = parts[:, 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            share = true[:, 1:] / true.sum(axis=1, keepdims=True)
        group = np.searchsorted(bounds, share, side="right")  # (rows, L)
        for index in range(len(SIZES)):
            chosen = (true[:, 1:] > 0) & (group == index)
            sums[index] += (parts[:, :, 1:] * chosen[:, None]).sum(axis=0)
            pairs[index] += int(chosen.sum())
    found = mean_iou(sums[:, 0], sums[:, 1], sums[:, 2])
    return {
        name: {"miou": float(miou), "pairs": int(count)} for name, miou, count in zip(SIZES, found, pairs, strict=True)
    }


def trimap_miou(counts: ImageCounts, threshold: float | None) -> float:
    """Mean IoU of the pixels near the outlines of the masks, see `near_outlines`; NaN without any."""
    matrix = counts.confusion(threshold, near=True).astype(np.float64)
    square = matrix[:, :-1]
    return float(mean_iou(np.diagonal(square), matrix.sum(axis=1), square.sum(axis=0)))


def background_confusion(counts: ImageCounts, threshold: float | None) -> dict[str, Floats]:
    """Shares of pixels that classes and background take from each other, `(L + 1,)` each; 0 / 0 is NaN.

    Returns:
        "missed": of the pixels of a class, those drawn as background; "background": of the pixels drawn as a class,
        those that are background; "others": of these, those that are another class. Of the background itself the
        first two are NaN, and "others" is what it takes of all classes.
    """
    matrix = counts.confusion(threshold).astype(np.float64)
    square = matrix[:, :-1]
    drawn = square.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        missed, background = matrix[:, 0] / matrix.sum(axis=1), square[0] / drawn
        others = (drawn - np.diagonal(square)) / drawn
    missed[0] = background[0] = np.nan
    others[1:] -= background[1:]
    return {"missed": missed, "background": background, "others": np.where(others < 0, 0.0, others)}
