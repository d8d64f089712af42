"""Propagation of maps between cells: over like colours (PAMR) and over like features (random walk)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.labels import (
    check_count,
    check_finite,
    check_images,
    check_maps,
    check_positive,
    check_same_cells,
)

Offset = tuple[int, int]  # rows down, columns right
Beyond = Literal["border", "nothing"]  # outside the grid a cell sees the nearest cell inside, or zeros


def _neighbours(values: Tensor, offsets: Sequence[Offset], beyond: Beyond) -> Iterator[Tensor]:
    """Neighbours of every cell of `(B, C, H, W)` at each offset; views of a padded copy, not to be written to."""
    height, width = values.shape[2:]
    margin = max(max(abs(row), abs(column)) for row, column in offsets)
    padded = F.pad(values, (margin,) * 4, mode="replicate" if beyond == "border" else "constant")
    for row, column in offsets:
        yield padded[:, :, margin + row : margin + row + height, margin + column : margin + column + width]


@check_arguments
def apply_weights(values: Tensor, weights: Tensor, offsets: Sequence[Offset], beyond: Beyond, times: int) -> Tensor:
    """Replaces each cell of `(B, C, H, W)` by the sum of its N neighbours by weight `(B, N, H, W)`, so many times."""
    for _ in range(times):
        total = torch.zeros_like(values)
        for index, seen in enumerate(_neighbours(values, offsets, beyond)):
            total.addcmul_(weights[:, index, None], seen)
        values = total
    return values


# A quarter of a grey level of 255: on a plain surface, rounding must not look like an edge.
_LEAST_STD = 1e-3


@torch.no_grad()
def pamr(
    maps: Tensor,
    images: Tensor,
    *,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    sharpness: float = 10.0,
) -> Tensor:
    """Refines maps along the colour edges of the photograph, without training (Araslanov & Roth, CVPR 2020).

    Each iteration replaces the value of a pixel `i` by the mean of its neighbours `j`, the 8 around it at every
    dilation, with weights

        `a_ij = softmax_j(-sharpness * mean_c(|x_ic - x_jc| / s_ic))`,

    where `x` are the colours and `s_ic` is the standard deviation of colour `c` over the pixel and its neighbours, so
    that an edge in a dim photograph counts as much as one in a bright photograph. As the weights sum to 1, maps stay in
    their range and a constant map stays as it is. Neighbours outside the photograph have the values of its border.

    It works in float32 and holds `8 * len(dilations)` weights a pixel (36 MB for 375 x 500), whatever the number of
    maps. Source: arXiv 2005.08104, the part on pixel-adaptive mask refinement.

    Args:
        maps: `(B, K, H, W)` in `[0, 1]`, the background among them if it is to compete.
        images: `(B, 3, H, W)` in `[0, 1]`, not normalised for a network.
        iterations: how often; 0 gives the maps back.
        dilations: distances of the neighbours in pixels, each 1 or more; great ones reach further and cost no more.
        sharpness: how strictly colours must agree, above 0.

    Returns:
        `(B, K, H, W)` float32 in `[0, 1]`.

    Raises:
        ArgumentError: for a value out of its range, maps or images that are not finite and in `[0, 1]`, or images of
            another number or size than the maps.

    Example:
        >>> image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 3, 4, 4)
        >>> maps = torch.tensor([0.9, 0.6, 0.1, 0.1]).expand(1, 1, 4, 4)
        >>> pamr(maps, image, dilations=(1,))[0, 0, 0]
        tensor([0.7846, 0.7846, 0.1000, 0.1000])
    """
    check_count("iterations", iterations, least=0)
    check_positive("sharpness", sharpness)
    if not dilations or min(dilations) < 1:
        raise ArgumentError("dilations", tuple(dilations), "give at least one distance of 1 pixel or more")
    check_maps(maps, dims=4)
    check_images(images, maps)
    values = maps.float()
    if values.numel() == 0 or iterations == 0:
        return values
    around = [(row, column) for row in (-1, 0, 1) for column in (-1, 0, 1) if (row, column) != (0, 0)]
    offsets = [(row * dilation, column * dilation) for dilation in dilations for row, column in around]
    return apply_weights(values, _colour_weights(images.float(), offsets, sharpness), offsets, "border", iterations)


def _colour_weights(images: Tensor, offsets: list[Offset], sharpness: float) -> Tensor:
    """Softmax weights of PAMR, `(B, N, H, W)`."""
    std = _local_std(images, offsets).add_(_LEAST_STD)
    batch, _, height, width = images.shape
    weights = images.new_empty(batch, len(offsets), height, width)
    for index, seen in enumerate(_neighbours(images, offsets, "border")):
        weights[:, index] = ((seen - images).abs_() / std).mean(1)
    weights *= -sharpness
    weights -= weights.amax(1, keepdim=True)  # softmax in place: this tensor is by far the largest
    weights.exp_()
    weights /= weights.sum(1, keepdim=True)
    return weights


def _local_std(images: Tensor, offsets: list[Offset]) -> Tensor:
    """Standard deviation of each colour over a pixel and its neighbours, `(B, 3, H, W)`."""
    # In two passes: the mean square minus the squared mean would leave rounding errors on a plain surface.
    around = [(0, 0), *offsets]
    mean = torch.zeros_like(images)
    for seen in _neighbours(images, around, "border"):
        mean += seen
    mean /= len(around)
    square = torch.zeros_like(images)
    for seen in _neighbours(images, around, "border"):
        difference = seen - mean
        square.addcmul_(difference, difference)
    return (square / len(around)).sqrt_()


@torch.no_grad()
def random_walk(
    maps: Tensor,
    features: Tensor,
    *,
    radius: float = 5.0,
    beta: float = 8.0,
    steps: int = 16,
    by_rows: bool = False,
) -> Tensor:
    """Random walk of maps over cells with like features: `steps` times `M <- T M`.

    `T` goes from each cell `i` to the cells `j` within `radius`, itself included, with probability
    `T_ij = a_ij / sum_j a_ij` and `a_ij = max(cos(f_i, f_j), 0)^beta`. This is the walk of AffinityNet (Ahn & Kwak,
    CVPR 2018, arXiv 1803.10464, section 3.3) with affinities read off the features instead of learnt. As the
    probabilities sum to 1, maps stay in their range; a background map among them walks and competes like a class.

    `T` is held as one map for each offset, `(B, N, H, W)` with N about `3.14 * radius^2`, never as `HW x HW`.

    Args:
        maps: `(B, K, H, W)` in `[0, 1]`.
        features: `(B, D, H, W)`; a cell whose features are all 0 is like no other and keeps its values.
        radius: how far one step goes, in cells, 1 or more.
        beta: how strictly features must agree, above 0; greater forbids more.
        steps: how many; 0 gives the maps back.
        by_rows: whether `features` are `a_ij` themselves, `(B, HW, H, W)`: in each cell its row, as of the attention of
            a transformer, and not raised to `beta`. A cell whose row is 0 within the radius keeps its values.

    Returns:
        `(B, K, H, W)` float32 in `[0, 1]`.

    Raises:
        ArgumentError: for a value out of its range, maps that are not finite and in `[0, 1]`, features that are not
            finite, or features of another number or size than the maps.

    Example:
        >>> features = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 1.0, 1.0]])[None, :, None]
        >>> random_walk(torch.tensor([[[[1.0, 0.0, 0.25, 0.25]]]]), features, radius=1)
        tensor([[[[0.5000, 0.5000, 0.2500, 0.2500]]]])
    """
    if radius < 1:
        raise ArgumentError("radius", radius, "give 1 or more: below that no cell has a neighbour")
    check_positive("beta", beta)
    check_count("steps", steps, least=0)
    check_maps(maps, dims=4)
    if features.ndim != 4:
        raise ArgumentError("features", tuple(features.shape), "give (B, D, H, W)")
    check_same_cells(features, maps, name="features")
    check_finite(features, name="features")
    cells = maps.shape[2] * maps.shape[3]
    if by_rows and features.shape[1] != cells:
        raise ArgumentError("features", tuple(features.shape), f"give {cells} channels by rows, one for each cell")
    values = maps.float()
    if values.numel() == 0 or steps == 0:
        return values
    reach = range(-int(radius), int(radius) + 1)
    offsets = [(row, column) for row in reach for column in reach if row**2 + column**2 <= radius**2]
    transition = _rows_within(features.float(), offsets) if by_rows else _transition(features.float(), offsets, beta)
    return apply_weights(values, transition, offsets, "nothing", steps)


def _transition(features: Tensor, offsets: list[Offset], beta: float) -> Tensor:
    """Rows of `T`, `(B, N, H, W)`: the probability of each step from each cell."""
    directions = F.normalize(features, dim=1)
    batch, _, height, width = features.shape
    affinity = features.new_empty(batch, len(offsets), height, width)
    for index, seen in enumerate(_neighbours(directions, offsets, "nothing")):
        affinity[:, index] = (directions * seen).sum(1)  # 0 with what lies outside
    affinity[:, offsets.index((0, 0))] = 1  # also where the features are 0: no row of T may be empty
    affinity.clamp_(0, 1).pow_(beta)
    affinity /= affinity.sum(1, keepdim=True)
    return affinity


def _rows_within(rows: Tensor, offsets: list[Offset]) -> Tensor:
    """Rows of `T`, `(B, N, H, W)`, from those of an affinity to all cells, `(B, HW, H, W)`."""
    batch, _, height, width = rows.shape
    affinity = rows.new_zeros(batch, len(offsets), height, width)
    for index, (down, right) in enumerate(offsets):
        top, bottom = max(0, -down), min(height, height - down)
        left, far = max(0, -right), min(width, width - right)
        if top >= bottom or left >= far:
            continue
        line = torch.arange(top, bottom, device=rows.device)[:, None] + down
        seen = line * width + torch.arange(left, far, device=rows.device) + right  # the cell at the offset
        own = rows[:, :, top:bottom, left:far]
        affinity[:, index, top:bottom, left:far] = own.gather(1, seen.expand(batch, 1, -1, -1))[:, 0]
    affinity.clamp_(min=0)
    total = affinity.sum(1, keepdim=True)
    affinity[:, offsets.index((0, 0))] += (total == 0).to(affinity.dtype)[:, 0]
    return affinity.div_(torch.where(total > 0, total, 1))
