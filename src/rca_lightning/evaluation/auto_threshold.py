"""Background threshold of class maps that no mask of the photographs chose: from how strong the maps are."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor
from torchmetrics import Metric

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.evaluation.map_kinds import MapKind, thresholds_of

_log = logging.getLogger(__name__)

Automatic = Literal["auto"]
"""Value of a threshold that is to be chosen by `AutoThreshold`."""

BINS = 200
_WITHIN_KIND = 0.5  # rise of the threshold with the strength, within a kind of maps
_BETWEEN_KINDS, _OFFSET = 1.3, -0.48  # line through the kinds: the best threshold by strength
_CRF = 0.9  # the dense CRF spreads the background, so that less of it is to be drawn before
_LOWEST, _HIGHEST = 0.05, 0.95


class AutoThreshold(Metric):
    """Chooses the background threshold of class maps without masks, from the histogram of their strengths.

    The strength of a pixel is its highest class map. All strengths are parted into two groups so that the variance
    between their means is greatest (Otsu, IEEE Transactions on Systems, Man, and Cybernetics 9, 1979). The mean of the
    stronger group says how flat the maps are: flat ones, as the attention, need a high threshold, peaked ones, as CAMs,
    a low one. The threshold is half that mean and an offset of the kind of maps: 0.125 for the attention, 0 for
    propagated CAMs, -0.1 for CAMs as they are. Where the kind is not known, a line through the kinds is read. Labels
    that a dense CRF refines have 0.9 of it. What chose these constants, and how far the scores lie below those of the
    best threshold, there and elsewhere: experiments/thresholds.

    Each image counts the same, whatever its size. One without a map does not count. It is exact over ranks.

    Args:
        kind: of the maps; `None`: not known, such as after a walk over learned boundaries, or of maps that training
            accumulated.
        crf: whether the labels are refined by a dense CRF.

    Example:
        >>> auto = AutoThreshold()
        >>> auto.update(torch.tensor([[[0.1, 0.1, 0.7, 0.9]]]))
        >>> 0.1 < auto.compute() < 0.7
        True
    """

    full_state_update = False
    histogram: Tensor
    images: Tensor

    @check_arguments
    def __init__(self, kind: MapKind | None = None, *, crf: bool = False) -> None:
        super().__init__()
        self.kind = kind
        self.crf = crf
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
        if not int(self.images):
            return None
        strength = upper_mean(self.histogram)
        if self.kind is None:
            threshold = _BETWEEN_KINDS * strength + _OFFSET
        else:
            threshold = _WITHIN_KIND * strength + thresholds_of(self.kind).offset
        threshold *= _CRF if self.crf else 1.0
        return min(_HIGHEST, max(_LOWEST, threshold))


@check_arguments
def choose_threshold(
    maps: Iterable[Tensor], *, kind: MapKind | None = None, crf: bool = False, device: torch.device | str = "cpu"
) -> float:
    """Chooses and logs the background threshold of class maps; every rank gives its share of them.

    Args:
        maps: of each image `(K, H, W)` in `[0, 1]`.
        kind: of the maps; see `AutoThreshold`.
        crf: whether the labels are refined by a dense CRF.
        device: where they are.

    Raises:
        DataError: if no image has a map.
    """
    auto = AutoThreshold(kind, crf=crf).to(device)
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
    weights = _shares(histogram)
    return float(_ends(weights)[_parting(weights)])


def upper_mean(histogram: Tensor) -> float:
    """Mean of the stronger of the two groups of a histogram of `[0, 1]`; of all of it where there is one group.

    Args:
        histogram: `(N,)` weights of N bins of like width, not all of them 0.

    Raises:
        ArgumentError: for weights below 0, or all of them 0.
    """
    weights = _shares(histogram)
    middles = _ends(weights) - 0.5 / len(weights)
    upper = weights.clone()
    upper[: _parting(weights) + 1] = 0
    if not float(upper.sum()) > 0:
        upper = weights
    return float((upper * middles).sum() / upper.sum())


def _shares(histogram: Tensor) -> Tensor:
    weights = histogram.detach().cpu().double()
    if weights.ndim != 1 or bool((weights < 0).any()) or not float(weights.sum()) > 0:
        raise ArgumentError("histogram", tuple(weights.shape), "give weights of bins, none below 0 and one above")
    return weights / weights.sum()


def _ends(weights: Tensor) -> Tensor:
    return torch.arange(1, len(weights) + 1, dtype=torch.float64) / len(weights)


def _parting(weights: Tensor) -> int:
    """The highest bin of the lower group."""
    below, moment = weights.cumsum(0), (weights * (_ends(weights) - 0.5 / len(weights))).cumsum(0)
    spread = below * (1 - below)
    # (mean above - mean below)^2 times both weights, written with sums of the lower group alone.
    between = torch.where(spread > 1e-12, (moment[-1] * below - moment).square() / spread.clamp_min(1e-12), 0.0)
    if not float(between.max()) > 0:
        return int(weights.argmax())
    best = torch.nonzero(between >= between.max() * (1 - 1e-12))[:, 0]
    return int(best[len(best) // 2])
