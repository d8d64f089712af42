"""Background threshold from a few masks, and how sure they make it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.comparison import images_file
from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.intervals import DRAWS, LEVEL, SEED, best_thresholds

_WIDE = 0.3  # interval that says little


@dataclass(frozen=True, kw_only=True)
class CalibratedThreshold:
    """A background threshold that masks chose.

    Attributes:
        threshold: the middle one of the best thresholds of all draws.
        low: lower end of the middle 95 % of them.
        high: upper end.
        miou: of these images at the threshold.
        images: how many chose it.
    """

    threshold: float
    low: float
    high: float
    miou: float
    images: int


def calibrate_threshold(
    counts: ImageCounts, *, masks: int | None = None, draws: int = DRAWS, seed: int = SEED
) -> CalibratedThreshold:
    """Chooses the background threshold of seeds from the masks of a few images.

    Each draw takes as many images as there are, with replacement, and finds the best of the thresholds that were
    counted for them; the middle one of these is taken.

    Args:
        counts: of images with masks, by `rca validate`.
        masks: how many of the images to take, at random; `None`: all.
        draws: 1 or more.
        seed: of the draws, and of the images that are taken.

    Raises:
        ArgumentError: for label images, no draw, or more masks than there are.
    """
    if not counts.thresholds:
        raise ArgumentError("counts", f"{len(counts.ids)} label images", "only seeds have a threshold; rca validate")
    if masks is not None:
        if not 1 <= masks <= len(counts.ids):
            raise ArgumentError("masks", masks, f"there are {len(counts.ids)}; give 1 to {len(counts.ids)}")
        rows = np.random.default_rng(seed).permutation(len(counts.ids))[:masks]
        counts = counts.take(np.sort(rows))
    best, curve = best_thresholds(counts, draws=draws, seed=seed)
    middle = float(np.quantile(best, 0.5, method="lower"))
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(best, [tail, 1 - tail], method="nearest")
    miou = float(curve[counts.thresholds.index(middle)])
    return CalibratedThreshold(threshold=middle, low=float(low), high=float(high), miou=miou, images=len(counts.ids))


def print_calibration(path: Path, *, masks: int | None, seed: int) -> None:
    """Prints the threshold that the masks behind a score file choose.

    Args:
        path: `validate_images.npz`, or the `validate.json` beside it.
        masks: see `calibrate_threshold`.
        seed: the same.

    Raises:
        RCAError: for files that cannot be used, and see `calibrate_threshold`.
    """
    counts = ImageCounts.load(images_file(path) if path.suffix == ".json" else path)
    found = calibrate_threshold(counts, masks=masks, seed=seed)
    print(f"background threshold {found.threshold:g}, 95 % interval {found.low:g} to {found.high:g}")
    print(f"chosen by the masks of {found.images} images, on which mIoU is {100 * found.miou:.1f} there")
    if found.high - found.low > _WIDE:
        print("the interval is wide: draw masks of more images, of all classes, and score again")
