"""Lloyd's iteration of many classes at once: assign each point to the nearest centroid, move it to their mean."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def lloyd(
    points: Tensor, valid: Tensor, centroids: Tensor, usable: Tensor, iterations: int, *, unit: bool = False
) -> Tensor:
    """Centroids `(C, K, D)` after at most `iterations` steps; fewer where nothing moves any more.

    Args:
        points: `(C, N, D)`; of unit length for `unit`.
        valid: `(C, N)` boolean.
        centroids: `(C, K, D)`, the start.
        usable: `(C, K)` boolean, centroids that points may go to.
        iterations: steps at most.
        unit: scale each mean to unit length (spherical k-means, Dhillon and Modha, 2001). Between unit vectors
            the nearest is the one of highest cosine, so the assignment is the same code.
    """
    for _ in range(iterations):
        updated = means(points, valid, nearest(points, centroids, usable), centroids, unit=unit)
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids


def nearest(points: Tensor, centroids: Tensor, usable: Tensor) -> Tensor:
    """Index `(C, N)` of the nearest usable centroid of each point."""
    # Without the squared length of the point, which is the same for each of its distances.
    lengths = centroids.square().sum(dim=2).masked_fill(~usable, torch.inf)[:, :, None]  # (C, K, 1)
    return torch.baddbmm(lengths, centroids, points.transpose(1, 2), alpha=-2).min(dim=1).indices


def means(points: Tensor, valid: Tensor, assignment: Tensor, fallback: Tensor, *, unit: bool = False) -> Tensor:
    """Mean `(C, K, D)` of the valid points assigned to each centroid, `fallback` where there is none.

    Args:
        points: `(C, N, D)`.
        valid: `(C, N)` boolean.
        assignment: `(C, N)`, 0 or more.
        fallback: `(C, K, D)`.
        unit: scale the means to unit length; a mean that is all but zero has no direction and falls back too.
    """
    sums, sizes = _sums(points, valid, assignment, fallback.shape[1])
    found = sums / sizes.clamp_min(1)
    if unit:
        lengths = found.norm(dim=2, keepdim=True)
        return torch.where(lengths > _SHORTEST, found / lengths.clamp_min(_SHORTEST), fallback)
    return torch.where(sizes > 0, found, fallback)


def _sums(points: Tensor, valid: Tensor, assignment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum `(C, K, D)` and number `(C, K, 1)` of the valid points of each cluster."""
    by = _sums_by_index if points.device.type == "cpu" else _sums_by_product
    return by(points, valid, assignment, count)


def _sums_by_index(points: Tensor, valid: Tensor, assignment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (len(points), count, points.shape[2])
    cluster = assignment + torch.arange(len(points))[:, None] * count  # (C, N), of all classes
    own = cluster[valid]
    sizes = torch.bincount(own, minlength=shape[0] * count).to(points.dtype).reshape(*shape[:2], 1)
    rows = points.flatten(0, 1) if len(own) == cluster.numel() else points[valid]
    return points.new_zeros(shape).flatten(0, 1).index_add_(0, own, rows).reshape(shape), sizes


def _sums_by_product(points: Tensor, valid: Tensor, assignment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # On a GPU the order of a sum by index would change from run to run, and products cost next to nothing.
    membership = F.one_hot(assignment, count).to(points.dtype) * valid[:, :, None]
    return torch.bmm(membership.transpose(1, 2), points), membership.sum(dim=1)[:, :, None]


_SHORTEST = 1e-6  # float32 leaves this much where opposite unit vectors cancel
