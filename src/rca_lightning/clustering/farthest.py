"""Farthest-point sampling: each prototype starts where the class is covered worst."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.clustering.kmeans import PerClassGenerator, means, nearest, spread_seeds


def farthest(distances: Tensor) -> Tensor:
    """The point `(C, 1)` that is farthest from its nearest centroid, by the distances `(C, N)`."""
    return distances.argmax(dim=1, keepdim=True)


def farthest_seeds(points: Tensor, valid: Tensor, num_clusters: int, draws: PerClassGenerator) -> tuple[Tensor, Tensor]:
    """Greedy k-centre (Gonzalez, 1985): a random point, then always the one farthest from those so far.

    The largest distance of a point to its centre is at most twice the smallest possible. Arguments and result
    are those of `rca_lightning.clustering.kmeans.greedy_seeds`.
    """
    return spread_seeds(points, valid, num_clusters, draws, farthest)


def cells(points: Tensor, valid: Tensor, centres: Tensor, usable: Tensor) -> tuple[Tensor, Tensor]:
    """Mean `(C, K, D)` and members `(C, N)` of the cell of each centre.

    A centre itself is the most extreme region of its surroundings, in a memory of pooled activations often a bad
    one; the mean of its cell keeps the coverage and is not decided by one region.
    """
    assignment = nearest(points, centres, usable)
    return means(points, valid, assignment, torch.zeros_like(centres)), assignment
