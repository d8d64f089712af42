"""A memory as blocks of whole classes that are clustered one after the other."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_BYTES = 2**30
"""Of the float32 points of a block. Clustering holds a few times as much; a class larger than this is a block."""


def class_blocks(points: Tensor, valid: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Points as float32 on the device, a bounded number of classes at a time.

    Args:
        points: `(C, N, D)` on any device, in any precision.
        valid: `(C, N)` boolean.
        device: where they are wanted.

    Yields:
        The classes, their points `(c, N, D)` and which of these are valid `(c, N)`.
    """
    step = max(1, BLOCK_BYTES // max(1, 4 * points.shape[1] * points.shape[2]))
    for first in range(0, len(points), step):
        rows = slice(first, min(first + step, len(points)))
        yield rows, points[rows].to(device, non_blocking=True).float(), valid[rows].to(device)
