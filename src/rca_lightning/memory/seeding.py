"""Greedy k-means++ seeding of many classes at once."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def squared_distances(points: Tensor, centroids: Tensor) -> Tensor:
    """Squared distances `(C, N, K)` of points `(C, N, D)` to centroids `(C, K, D)`, never negative."""
    cross = torch.bmm(points, centroids.transpose(1, 2))
    return (points.square().sum(2)[:, :, None] - 2 * cross + centroids.square().sum(2)[:, None, :]).clamp_min_(0)


def greedy_seeds(points: Tensor, valid: Tensor, num_clusters: int, generator: torch.Generator) -> Tensor:
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
        `(C, K, D)`. A class with fewer distinct points than `K` repeats some; the caller drops empty clusters.
    """
    classes = torch.arange(len(points), device=points.device)
    trials = 2 + int(math.log(num_clusters))
    weights = valid.to(torch.float64)
    first = _draw(weights, 1, generator)[:, 0]
    centroids = [points[classes, first]]
    nearest = squared_distances(points, centroids[0][:, None])[:, :, 0] * valid  # (C, N)
    for _ in range(1, num_clusters):
        candidates = _draw(nearest.double(), trials, generator)  # (C, trials)
        proposed = points[classes[:, None], candidates]  # (C, trials, D)
        distances = torch.minimum(nearest[:, :, None], squared_distances(points, proposed) * valid[:, :, None])
        best = distances.sum(dim=1).argmin(dim=1)  # (C,)
        centroids.append(proposed[classes, best])
        nearest = distances[classes, :, best]
    return torch.stack(centroids, dim=1)


def _draw(weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Indices `(C, count)` drawn in proportion to weights `(C, N)`; index 0 where all weights are 0."""
    uniform = torch.rand(len(weights), count, generator=generator, dtype=torch.float64).to(weights.device)
    cumulative = weights.cumsum(dim=1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return index.clamp_max(weights.shape[1] - 1) * (cumulative[:, -1:] > 0)
