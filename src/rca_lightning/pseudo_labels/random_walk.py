"""Class evidence that walks over the features of the network: like cells share it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.inputs import check_count, check_finite, check_maps, check_positive, check_same_cells
from rca_lightning.pseudo_labels.neighbours import Offset, disc, shifted, weighted_sum


@torch.no_grad()
def random_walk(maps: Tensor, features: Tensor, *, radius: float = 5.0, beta: float = 8.0, steps: int = 16) -> Tensor:
    """Carry maps from cell to cell of like features, `steps` times `M <- T M`.

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
    values = maps.float()
    if values.numel() == 0 or steps == 0:
        return values
    offsets = disc(radius)
    transition = _transition(features.float(), offsets, beta)
    for _ in range(steps):
        values = weighted_sum(values, transition, offsets, beyond="nothing")
    return values


def _transition(features: Tensor, offsets: list[Offset], beta: float) -> Tensor:
    directions = F.normalize(features, dim=1)
    batch, _, height, width = features.shape
    affinity = features.new_empty(batch, len(offsets), height, width)
    for index, seen in enumerate(shifted(directions, offsets, beyond="nothing")):
        affinity[:, index] = (directions * seen).sum(1)  # 0 with what lies outside
    affinity[:, offsets.index((0, 0))] = 1  # also where there are no features: no row of T may be empty
    affinity.clamp_(0, 1).pow_(beta)
    affinity /= affinity.sum(1, keepdim=True)
    return affinity
