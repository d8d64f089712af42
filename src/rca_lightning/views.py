"""The views of a photograph that are averaged: its scales, each also mirrored."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence

import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError

logger = logging.getLogger(__name__)

MAX_SIDE = 1280
"""Longest side of a view in pixels unless said otherwise: VOC and COCO photographs reach it at twice their size."""

_LEAST_SIDE = 16  # the smallest crop of training; on less a network with stride 16 sees a single cell
_capped: set[tuple[int, int, int]] = set()  # sizes that were logged already


def check_views(scales: Sequence[float], max_side: int) -> None:
    """Refuse scales and a cap of which no view can be made.

    Raises:
        ArgumentError: no scale, one that is not above 0 and finite, or a side below 16 pixels.
    """
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ArgumentError("scales", scales, "give at least one number above 0, such as 0.5 1.0 1.5")
    if max_side < _LEAST_SIDE:
        raise ArgumentError("max_side", max_side, f"give {_LEAST_SIDE} pixels or more")


def views(
    images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = True, max_side: int = MAX_SIDE
) -> Iterator[tuple[Tensor, bool]]:
    """Scaled images, each as it is and mirrored, one view at a time.

    A view whose longer side would exceed `max_side` is made with that side instead, which bounds the memory of a large
    photograph; two scales that both exceed it are one view then. It is logged once for each size of photograph.

    Args:
        images: `(B, 3, H, W)`, normalised.
        scales: factors on the size of the images.
        flip: whether to add the mirrored image at every scale.
        max_side: longest side of a view in pixels, 16 or more.

    Yields:
        `(B, 3, h, w)`, and whether it is mirrored.

    Raises:
        ArgumentError: see `check_views`.

    Example:
        >>> import torch
        >>> [tuple(view.shape[2:]) for view, _ in views(torch.zeros(1, 3, 40, 60), scales=(0.5, 1.0), flip=False)]
        [(20, 30), (40, 60)]
    """
    check_views(scales, max_side)
    for height, width in view_sizes((images.shape[2], images.shape[3]), scales=scales, max_side=max_side):
        same = (height, width) == tuple(images.shape[2:])
        smaller = height < images.shape[2]
        scaled = images if same else F.interpolate(images, (height, width), mode="bilinear", antialias=smaller)
        yield scaled, False
        if flip:
            yield scaled.flip(3), True


def view_sizes(size: tuple[int, int], *, scales: Sequence[float], max_side: int = MAX_SIDE) -> list[tuple[int, int]]:
    """Height and width of each view of a photograph of this height and width, each size once."""
    longest = max(size)
    largest = max_side / longest
    kept = dict.fromkeys(min(scale, largest) for scale in scales)
    if largest < max(scales) and (key := (*size, max_side)) not in _capped:
        _capped.add(key)
        logger.warning(
            "photographs of %d x %d pixels: scales above %.3g are computed at that scale, as max_side=%d bounds memory",
            size[1],
            size[0],
            largest,
            max_side,
        )
    sizes = [(max(1, round(size[0] * scale)), max(1, round(size[1] * scale))) for scale in kept]
    return list(dict.fromkeys(sizes))
