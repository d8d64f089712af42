"""Teacher of one stage: an exponential moving average of the student, which labels the pixels of its batches."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.visualization import rgb
from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.labels import check_share
from rca_lightning.pseudo_labels.propagation import pamr
from rca_lightning.rca.cam import max_normalise

LABEL_STRIDE = 4
"""Pixels of an image a cell of the labels of the teacher."""

_DILATIONS = (1, 2, 3, 6)  # of PAMR: 4 to 24 pixels of the image, as far as it reaches at full size


def warm_decay(decay: float, step: int) -> float:
    """Decay of the average at a step, `min(decay, (1 + step) / (10 + step))`: the first steps are soon forgotten.

    Args:
        decay: of a long training, in `[0, 1)`; 0 makes the student its own teacher.
        step: how often the teacher was updated before.

    Example:
        >>> warm_decay(0.99, 0), warm_decay(0.99, 10_000), warm_decay(0.0, 5)
        (0.1, 0.99, 0.0)
    """
    return min(decay, (1 + step) / (10 + step))


@torch.no_grad()
def update_teacher(teacher: nn.Module, student: nn.Module, decay: float) -> None:
    """Updates the weights of the teacher, `T <- decay * T + (1 - decay) * S`, and copies all buffers of the student.

    Buffers are running means already (the statistics of BatchNorm) or no numbers to average (prototypes, counts).

    Args:
        teacher: a copy of the student; changed in place.
        student: the network that is trained.
        decay: in `[0, 1]`.
    """
    for average, weight in zip(teacher.parameters(), student.parameters(), strict=True):
        average.lerp_(weight.to(average.dtype), 1 - decay)
    for copy, buffer in zip(teacher.buffers(), student.buffers(), strict=True):
        if copy is not buffer:
            copy.copy_(buffer)


def ramp(elapsed: float, length: float) -> float:
    """Weight of a loss that sets in slowly: 0 up to 1, linear in time.

    Args:
        elapsed: epochs since it has set in; below 0 before.
        length: epochs until the whole weight; 0: at once.

    Example:
        >>> ramp(-1, 2), ramp(0.5, 2), ramp(3, 2), ramp(0, 0)
        (0.0, 0.25, 1.0, 1.0)
    """
    if elapsed < 0:
        return 0.0
    return 1.0 if elapsed >= length else elapsed / length


@torch.no_grad()
def teacher_labels(
    maps: Tensor,
    images: Tensor,
    tags: Tensor,
    *,
    low: float,
    high: float,
    pamr_iterations: int = 10,
    trusted: Tensor | None = None,
) -> Tensor:
    """Labels pixels from class maps: the strongest class above `high`, background below `low`, 255 between.

    Maps are enlarged to a quarter of the image, divided by their peaks and refined along its colours by `pamr`.
    Padding, which is 0 in all channels, counts for no peak and gets no label. Neither do images of unknown tags.

    Args:
        maps: `(B, L, h, w)`, not negative; maps of other classes than the tags are not read.
        images: `(B, 3, H, W)`, normalised.
        tags: `(B, L)`, 1 for a tag of the image, 0 otherwise, a row below 0 where they are unknown.
        low: in `[0, high]`.
        high: in `[low, 1]`.
        pamr_iterations: 0: the maps are not refined.
        trusted: `(L,)` bool, the classes whose maps are to be believed; `None`: all. Another class gets no label, and
            what may be its object is not background: an image with its tag has none.

    Returns:
        `(B, ceil(H / 4), ceil(W / 4))` int64: 0 background, class + 1, and 255 where nothing is decided.

    Example:
        >>> maps = torch.tensor([1.0, 1.0, 0.6, 0.1]).expand(1, 1, 2, 4)
        >>> teacher_labels(maps, torch.ones(1, 3, 8, 16), torch.ones(1, 1), low=0.2, high=0.7, pamr_iterations=0)
        tensor([[[  1,   1, 255,   0],
                 [  1,   1, 255,   0]]])
    """
    check_thresholds(low, high)
    size = [-(-side // LABEL_STRIDE) for side in images.shape[2:]]
    padding = F.interpolate((images == 0).all(dim=1, keepdim=True).float(), size, mode="area") > 0  # (B, 1, h, w)
    shown = tags > 0 if trusted is None else (tags > 0) & trusted
    # What is not finite has its error elsewhere, with the names of the images.
    enlarged = F.interpolate(maps.float().nan_to_num(0, 0, 0), size, mode="bilinear", align_corners=False)
    read = max_normalise(enlarged * shown[:, :, None, None] * ~padding)
    classes = torch.nonzero(shown.any(dim=0))[:, 0]  # PAMR of the others would be of zeros
    if pamr_iterations and len(classes):
        colours = F.interpolate(rgb(images.nan_to_num(0, 0, 0)), size, mode="bilinear", antialias=True).clamp(0, 1)
        refined = pamr(read[:, classes], colours, iterations=pamr_iterations, dilations=_DILATIONS)
        read = read.index_copy(1, classes, refined)
    strength, strongest = read.max(dim=1)  # (B, h, w)
    labels = torch.full_like(strongest, IGNORE_INDEX)
    doubtful = ((tags > 0) != shown).any(dim=1)[:, None, None]  # (B, 1, 1)
    labels[(strength < low) & ~doubtful] = 0
    certain = strength > high
    labels[certain] = strongest[certain] + 1
    unknown = (tags < 0).any(dim=1)[:, None, None]
    return labels.masked_fill_(padding[:, 0] | unknown, IGNORE_INDEX)


def check_thresholds(low: float, high: float) -> None:
    """Refuses thresholds outside `[0, 1]`, or that leave no room between."""
    check_share("low", low)
    check_share("high", high)
    if low > high:
        raise ArgumentError("low", low, f"give at most high, which is {high}")
