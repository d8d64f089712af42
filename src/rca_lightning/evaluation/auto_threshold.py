"""Background threshold that no mask chose: where the strengths of class maps part best into two groups."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from rca_lightning.errors import ArgumentError, DataError

_log = logging.getLogger(__name__)

Automatic = Literal["auto"]
"""Value of a threshold that is to be chosen by `AutoThreshold`."""

BINS = 200


class AutoThreshold(Metric):
    """Chooses the background threshold of class maps without masks, from the histogram of their strengths.

    The strength of a pixel is its highest class map. The threshold parts all strengths into two groups so that the
    variance between their means is greatest (Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9, 1979). Each
    image counts the same, whatever its size. One without a map does not count. It is exact over ranks.

    How far its scores lie below the best threshold's: experiments/thresholds.

    Example:
        >>> auto = AutoThreshold()
        >>> auto.update(torch.tensor([[[0.1, 0.1, 0.7, 0.9]]]))
        >>> 0.1 < auto.compute() < 0.7
        True
    """

    full_state_update = False
    histogram: Tensor
    images: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("histogram", torch.zeros(BINS, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, maps: Tensor) -> None:
        """Counts one image.

        Args:
            maps: class maps `(K, H, W)` in `[0, 1]`.
        """
        if maps.shape[0] == 0:
            return
        strength = maps.float().amax(dim=0).flatten()
        bins = (strength * BINS).long().clamp(0, BINS - 1)
        counts = torch.bincount(bins, minlength=BINS).double()
        self.histogram += (counts / counts.sum()).to(self.histogram)
        self.images += 1

    def compute(self) -> float | None:
        """The threshold in `[0, 1]`; `None` where no image had a map."""
        return otsu_threshold(self.histogram) if int(self.images) else None


def choose_threshold(maps: Iterable[Tensor], *, device: torch.device | str = "cpu") -> float:
    """Chooses and logs the background threshold of class maps; every rank gives its share of them.

    Args:
        maps: of each image `(K, H, W)` in `[0, 1]`.
        device: where they are.

    Raises:
        DataError: if no image has a map.
    """
    auto = AutoThreshold().to(device)
    for of_image in maps:
        auto.update(of_image)
    threshold = auto.compute()
    if threshold is None:
        raise DataError("no photograph has a map that a background threshold could be chosen from; give a number")
    _log.info("background threshold, chosen without masks: %g", threshold)
    return float(threshold)


def otsu_threshold(histogram: Tensor) -> float:
    """Threshold that parts a histogram of `[0, 1]` into the two groups with the greatest variance between them.

    Args:
        histogram: `(N,)` weights of N bins of like width, not all of them 0.

    Returns:
        The upper end of the highest bin of the lower group; the middle one, where several are as good. Where all
        weights lie in one bin, the upper end of that.

    Raises:
        ArgumentError: for weights below 0, or all of them 0.
    """
    weights = histogram.detach().cpu().double()
    if weights.ndim != 1 or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ArgumentError("histogram", tuple(weights.shape), "give weights of bins, none below 0 and one above")
    weights = weights / weights.sum()
    ends = torch.arange(1, len(weights) + 1, dtype=torch.float64) / len(weights)
    below, moment = weights.cumsum(0), (weights * (ends - 0.5 / len(weights))).cumsum(0)
    spread = below * (1 - below)
    # (mean above - mean below)^2 times both weights, written with sums of the lower group alone.
    between = torch.where(spread > 1e-12, (moment[-1] * below - moment).square() / spread.clamp_min(1e-12), 0.0)
    if not float(between.max()) > 0:
        return float(ends[int(weights.argmax())])
    best = torch.nonzero(between >= between.max() * (1 - 1e-12))[:, 0]
    return float(ends[best[len(best) // 2]])
