"""Greedy k-means++ seeding of many classes at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances `(C, N, K)` of points `(C, N, D)` to centroids `(C, K, D)`, never negative."""
    cross = torch.bmm(points, centroids.transpose(1, 2))
    return (points.square().sum(2)[:, :, None] - 2 * cross + centroids.square().sum(2)[:, None, :]).clamp_min_(0)


def greedy_seeds(points: Tensor, valid: Tensor, num_clusters: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Pick starting centroids far from each other (Arthur and Vassilvitskii, SODA 2007, greedy form).

    Each further centroid is the best of `2 + log K` candidates drawn with probability proportional to the
    squared distance to the centroids so far. Draws are made on the CPU: the same seed
    gives the same start on every device.

    Args:
        points: `(C, N, D)`.
        valid: `(C, N)` boolean.
        num_clusters: `K`.
        generator: on the CPU.

    Returns:
        The centroids `(C, K, D)`, and `(C, K)` boolean which of them differ from all before: a class with
        fewer distinct points than `K` has fewer, and they come first.
    """
    classes = torch.arange(len(points), device=points.device)
    trials = 2 + int(math.log(num_clusters))
    weights = valid.to(torch.float64)
    first = _draw(weights, 1, generator)[:, 0]
    centroids, distinct = [points[classes, first]], [valid.any(dim=1)]
    nearest = squared_distances(points, centroids[0][:, None])[:, :, 0] * valid  # (C, N)
    nearest = _without_copies(nearest, points, centroids[0])
    for _ in range(1, num_clusters):
        distinct.append((nearest > 0).any(dim=1))
        candidates = _draw(nearest.double(), trials, generator)  # (C, trials)
        proposed = points[classes[:, None], candidates]  # (C, trials, D)
        distances = torch.minimum(nearest[:, :, None], squared_distances(points, proposed) * valid[:, :, None])
        best = distances.sum(dim=1).argmin(dim=1)  # (C,)
        centroids.append(proposed[classes, best])
        nearest = _without_copies(distances[classes, :, best], points, centroids[-1])
    return torch.stack(centroids, dim=1), torch.stack(distinct, dim=1)


def _without_copies(distances: Tensor, points: Tensor, centroid: Tensor) -> Tensor:
    # Rounding leaves copies of a centroid (C, D) a little apart from it, enough to be drawn again.
    close = distances <= 1e-3 * centroid.square().sum(dim=1, keepdim=True)
    label, index = torch.nonzero(close, as_tuple=True)
    copy = (points[label, index] == centroid[label]).all(dim=1)
    return distances.index_put((label[copy], index[copy]), distances.new_zeros(()))


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices `(C, count)` drawn in proportion to weights `(C, N)`; index 0 where all weights are 0."""
    uniform = torch.rand(len(weights), count, generator=generator, dtype=torch.float64).to(weights.device)
    cumulative = weights.cumsum(dim=1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return index.clamp_max(weights.shape[1] - 1) * (cumulative[:, -1:] > 0)
