"""Affinities of cells from a boundary map: the loss that learns it, and the random walk of class maps over it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.labels import check_count, check_maps, check_positive, check_same_cells
from rca_lightning.pseudo_labels.propagation import Offset, apply_weights
from rca_lightning.rca.cam import max_normalise

LOSS_RADIUS = 10.0
"""How far apart the cells of a pair may lie in training, in cells."""
NUM_OFFSETS = 40
"""Offsets of pairs that a training step draws: a quarter of those within `LOSS_RADIUS`."""
WALK_RADIUS, WALK_BETA, WALK_STEPS = 8.0, 8.0, 32
"""Settings of the walk, chosen on photographs of VOC (experiments/voc2012_mini); IRN has 5, 10 and 256."""
PAIR_WEIGHTS = {"background": 0.25, "class": 0.25, "different": 0.5}
"""Weight of each kind of pair in the loss."""

_LEAST = 1e-5  # of what a logarithm is taken


def half_disc(radius: float) -> list[Offset]:
    """Offsets to the cells within `radius` that follow in reading order: each pair of cells once.

    Example:
        >>> half_disc(1)
        [(0, 1), (1, 0)]
    """
    if not 1 <= radius < math.inf:
        raise ArgumentError("radius", radius, "give 1 or more: below that no cell has a neighbour")
    reach = range(-int(radius), int(radius) + 1)
    return [
        (row, column) for row in reach for column in reach if (row, column) > (0, 0) and row**2 + column**2 <= radius**2
    ]


def line(offset: Offset) -> list[Offset]:
    """Cells on the straight line from a cell to the one at `offset`, both ends included; the way back has the same.

    Example:
        >>> line((1, 2))
        [(0, 0), (1, 1), (1, 2)]
    """
    row, column = offset
    length = max(abs(row), abs(column), 1)
    return [
        ((2 * row * k + length) // (2 * length), (2 * column * k + length) // (2 * length)) for k in range(length + 1)
    ]


def _affinities(boundary: Tensor, offsets: Sequence[Offset]) -> Iterator[Tensor]:
    """Affinity `(B, h, w)` of each cell with the one at each offset."""
    margin = max(max(abs(row), abs(column)) for row, column in offsets)
    height, width = boundary.shape[1:]
    padded = F.pad(boundary, (margin,) * 4, value=1.0)  # what lies outside is behind a boundary
    for offset in offsets:
        highest: Tensor | None = None
        for row, column in line(offset):
            seen = padded[:, margin + row : margin + row + height, margin + column : margin + column + width]
            highest = seen if highest is None else torch.maximum(highest, seen)
        assert highest is not None
        yield 1 - highest


def boundary_affinities(boundary: Tensor, offsets: Sequence[Offset]) -> Tensor:
    """Affinity of each cell `i` with the cell `j` at each offset, `a_ij = 1 - max_k b_k`, equation (14).

    The maximum is over the cells `k` on the line from `i` to `j`, both ends included; see `line`. With cells outside
    the grid the affinity is 0.

    Args:
        boundary: `b (B, h, w)`, probability that a cell lies on a boundary.
        offsets: `N` of them, rows down and columns right.

    Returns:
        `(B, N, h, w)`.

    Example:
        >>> boundary_affinities(torch.tensor([[[0.0, 0.75, 0.0, 0.5]]]), [(0, 2)])
        tensor([[[[0.2500, 0.2500, 0.0000, 0.0000]]]])
    """
    if not offsets:
        raise ArgumentError("offsets", list(offsets), "give at least one")
    return torch.stack(list(_affinities(boundary, offsets)), dim=1)


@check_arguments
def pair_losses(
    boundary: Tensor,
    labels: Tensor,
    *,
    radius: float = LOSS_RADIUS,
    num_offsets: int | None = None,
    generator: torch.Generator | None = None,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Mean loss of each kind of pair of cells within `radius` whose labels are both known, equation (15).

    `-log a` of pairs of background, and of pairs of one class; `-log(1 - a)` of pairs of different labels.

    Args:
        boundary: `(B, h, w)` in `[0, 1]`.
        labels: `(B, h, w)` int64: 0 background, above it classes, 255 unknown.
        radius: in cells, 1 or more.
        num_offsets: how many of the offsets within the radius to draw at random, which estimates the loss of all
            without bias in less time; none: all.
        generator: of the draw; none: that of torch.

    Returns:
        The means by the names of `PAIR_WEIGHTS`, 0 where there is no such pair; and the number of pairs of each.

    Raises:
        ArgumentError: for shapes that do not fit, a radius below 1, or no offset.
    """
    if boundary.ndim != 3 or boundary.shape != labels.shape:
        raise ArgumentError("labels", tuple(labels.shape), f"give one for each cell: {tuple(boundary.shape)}")
    offsets = half_disc(radius)
    if num_offsets is not None:
        check_count("num_offsets", num_offsets, least=1)
    drawn = set(range(len(offsets)))
    if num_offsets is not None and num_offsets < len(offsets):
        drawn = set(torch.randperm(len(offsets), generator=generator)[:num_offsets].tolist())
    boundary = boundary.float()
    affinities = _affinities(boundary, [offset for index, offset in enumerate(offsets) if index in drawn])
    totals = {name: boundary.new_zeros(()) for name in PAIR_WEIGHTS}
    counts = {name: torch.zeros((), dtype=torch.long, device=boundary.device) for name in PAIR_WEIGHTS}
    for index, pairs in enumerate(_pairs(labels, offsets)):  # all are counted, also of offsets that are not drawn
        for name, pair in pairs.items():
            counts[name] += pair.sum()
        if index in drawn:
            affinity = next(affinities)
            near, far = -affinity.clamp_min(_LEAST).log(), -(1 - affinity).clamp_min(_LEAST).log()
            for name, pair in pairs.items():
                totals[name] = totals[name] + ((far if name == "different" else near) * pair).sum()
    factor = len(offsets) / len(drawn)
    return {name: factor * total / counts[name].clamp_min(1) for name, total in totals.items()}, counts


def _pairs(labels: Tensor, offsets: Sequence[Offset]) -> Iterator[dict[str, Tensor]]:
    """Which cells `(B, h, w)` are in a pair of each kind with the cell at each offset."""
    labels = labels.to(torch.uint8)
    margin = max(max(abs(row), abs(column)) for row, column in offsets)
    height, width = labels.shape[1:]
    padded = F.pad(labels, (margin,) * 4, value=IGNORE_INDEX)
    known = labels != IGNORE_INDEX
    for row, column in offsets:
        seen = padded[:, margin + row : margin + row + height, margin + column : margin + column + width]
        same = known & (labels == seen)
        is_class = same & (labels > 0)
        yield {"background": same & ~is_class, "class": is_class, "different": known & (seen != IGNORE_INDEX) & ~same}


def affinity_loss(
    boundary: Tensor,
    labels: Tensor,
    *,
    radius: float = LOSS_RADIUS,
    num_offsets: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss of a boundary map: the means of `pair_losses` by `PAIR_WEIGHTS`, equation (15); for the arguments see there.

    Example:
        >>> labels = torch.tensor([[[0, 0, 1, 1]]])
        >>> good = affinity_loss(torch.tensor([[[0.1, 0.1, 0.9, 0.1]]]), labels, radius=1)
        >>> bad = affinity_loss(torch.tensor([[[0.9, 0.1, 0.1, 0.1]]]), labels, radius=1)
        >>> bool(good < bad)
        True
    """
    means, _ = pair_losses(boundary, labels, radius=radius, num_offsets=num_offsets, generator=generator)
    return torch.stack([PAIR_WEIGHTS[name] * mean for name, mean in means.items()]).sum()


@torch.no_grad()
def boundary_walk(
    maps: Tensor,
    boundary: Tensor,
    *,
    radius: float = WALK_RADIUS,
    beta: float = WALK_BETA,
    steps: int = WALK_STEPS,
) -> Tensor:
    """Random walk of maps that boundaries stop: `steps` times `M <- T M`, equation (16).

    `T` goes from each cell `i` to the cells `j` within `radius` with the probability `T_ij = a_ij^beta / sum_j
    a_ij^beta`, with `a` of `boundary_affinities` and `a_ii = 1`. It is held as one map for each offset, `(B, N, h, w)`
    with N about `3.14 * radius^2`, never as `hw x hw`. A constant map stays as it is. IRN begins at
    `M (1 - b)`, from which maps that cover an object lose its border.

    Args:
        maps: `(B, K, h, w)` in `[0, 1]`.
        boundary: `b (B, h, w)` in `[0, 1]`.
        radius: how far one step goes, in cells, 1 or more.
        beta: how strictly boundaries stop, above 0.
        steps: how many.

    Returns:
        `(B, K, h, w)` float32 in `[0, 1]`.

    Raises:
        ArgumentError: for a value out of its range, maps or a boundary that are not finite and in `[0, 1]`, or a
            boundary of another number or size than the maps.

    Example:
        >>> wall = torch.tensor([[[0.0, 0.0, 1.0, 0.0]]])
        >>> boundary_walk(torch.tensor([[[[1.0, 0.0, 0.0, 0.0]]]]), wall, radius=1)
        tensor([[[[0.5000, 0.5000, 0.0000, 0.0000]]]])
    """
    half = half_disc(radius)
    check_positive("beta", beta)
    check_count("steps", steps, least=0)
    check_maps(maps, dims=4)
    check_maps(boundary, name="boundary")
    check_same_cells(boundary[:, None], maps, name="boundary")
    boundary = boundary.float().clamp(0, 1)
    values = maps.float()
    if values.numel() == 0 or steps == 0:
        return values
    offsets = [(0, 0), *half, *((-row, -column) for row, column in half)]
    weights = boundary_affinities(boundary, offsets).pow_(beta)
    weights[:, 0] = 1  # also on a boundary: no row of T may be empty
    weights /= weights.sum(1, keepdim=True)
    return apply_weights(values, weights, offsets, "nothing", steps).clamp_(0, 1)  # rounding adds up over the steps


@torch.no_grad()
def walk_class_maps(maps: Tensor, boundary: Tensor) -> Tensor:
    """Walks the class maps of a photograph on the grid of its boundary map, with the default settings.

    Args:
        maps: `(K, H, W)` in `[0, 1]`, without a background.
        boundary: `(h, w)` in `[0, 1]` of the same photograph, such as at a quarter of its size.

    Returns:
        `(K, H, W)` float32 in `[0, 1]`, each divided by its peak.
    """
    if len(maps) == 0:
        return maps.float()
    small = F.interpolate(maps[None].float(), boundary.shape, mode="area")
    walked = boundary_walk(small, boundary[None].to(maps.device))
    return max_normalise(F.interpolate(walked, maps.shape[1:], mode="bilinear", align_corners=False)[0])
