"""Sums over the neighbours of every cell, by shifting the whole map: no matrix of cells x cells."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Offset = tuple[int, int]  # rows down, columns right
Beyond = Literal["border", "nothing"]


def ring(dilations: Sequence[int]) -> list[Offset]:
    """The 8 neighbours at each distance, in rows and columns."""
    around = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
    return [(row * dilation, column * dilation) for dilation in dilations for row, column in around]


def disc(radius: float) -> list[Offset]:
    """All cells within a Euclidean distance, with the cell itself."""
    reach = range(-int(radius), int(radius) + 1)
    return [(row, column) for row in reach for column in reach if row**2 + column**2 <= radius**2]


def shifted(values: Tensor, offsets: Sequence[Offset], *, beyond: Beyond) -> Iterator[Tensor]:
    """For each offset, what every cell sees there.

    Args:
        values: `(B, C, H, W)`.
        offsets: where to look.
        beyond: what is seen outside: the nearest cell at the "border", or zeros ("nothing").

    Yields:
        `(B, C, H, W)`, a view of one padded copy: do not write to it.
    """
    height, width = values.shape[2:]
    margin = max((max(abs(row), abs(column)) for row, column in offsets), default=0)
    padded = F.pad(values, (margin,) * 4, mode="replicate" if beyond == "border" else "constant")
    for row, column in offsets:
        yield padded[:, :, margin + row : margin + row + height, margin + column : margin + column + width]


def weighted_sum(values: Tensor, weights: Tensor, offsets: Sequence[Offset], *, beyond: Beyond) -> Tensor:
    """For each cell, the sum of its neighbours by weight.

    Args:
        values: `(B, C, H, W)`.
        weights: `(B, N, H, W)`, of each of the N offsets as seen from each cell.
        offsets: N of them.
        beyond: see `shifted`.

    Returns:
        `(B, C, H, W)`.
    """
    total = torch.zeros_like(values)
    for index, seen in enumerate(shifted(values, offsets, beyond=beyond)):
        total.addcmul_(weights[:, index, None], seen)
    return total
