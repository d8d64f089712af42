"""The result of a clustering, and the points it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.kmeans import nearest
from rca_lightning.errors import ArgumentError


def as_batch(points: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check points and their mask, and bring them to one form.

    Args:
        points: `(C, N, D)`, or `(N, D)` for one class.
        valid: boolean, shaped like `points` without `D`; all points count if `None`.

    Returns:
        Points `(C, N, D)` float32, zero where not valid, and the mask `(C, N)`.

    Raises:
        ArgumentError: for a bad shape, or valid points that are not finite.
    """
    if points.ndim == 2:
        points = points[None]
        valid = valid[None] if valid is not None else None
    if points.ndim != 3:
        raise ArgumentError("points", tuple(points.shape), "give (C, N, D) or (N, D)")
    if valid is None:
        valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    if points.shape[1] < 1 or valid.shape != points.shape[:2]:
        shapes = (tuple(points.shape), tuple(valid.shape))
        raise ArgumentError("points, valid", shapes, "give (C, N, D) and (C, N) with at least one point")
    # Unused slots may hold anything; zero keeps them from spreading NaN through masked sums.
    points = points.float()
    if not valid.all():
        points = torch.where(valid[:, :, None], points, points.new_zeros(()))
    # A sum shows that something may be wrong in a tenth of the time.
    if not torch.isfinite(points.sum()) and not torch.isfinite(points).all():
        raise ArgumentError("points", "non-finite", "remove NaN and infinity before clustering")
    return points, valid


BY_CLASS = ("centroids", "valid", "assignment", "objective")


@dataclass
class Clusters:
    """Result of `cluster` for each class.

    Attributes:
        centroids: `(C, K, D)`; zero where not valid.
        valid: `(C, K)` boolean; a class of fewer than `K` distinct points has fewer clusters. Valid ones come first.
        assignment: `(C, N)` int64, the cluster of each point, -1 for invalid points.
        objective: `(C,)`, sum of squared distances to the own centroid; where `unit` of the points scaled to
            unit length, so `2 - 2 cos` each.
        backend: what ran: `"faiss-gpu"`, `"faiss-cpu"`, or `"torch-<device>"`.
        unit: centroids have unit length by construction, and points are compared to them by cosine.
    """

    centroids: Tensor
    valid: Tensor
    assignment: Tensor
    objective: Tensor
    backend: str
    unit: bool = False

    @property
    def sizes(self) -> Tensor:
        """Points of each cluster, `(C, K)` int64."""
        sizes = torch.zeros(self.valid.shape, dtype=torch.long, device=self.valid.device)
        return sizes.scatter_add_(1, self.assignment.clamp_min(0), (self.assignment >= 0).long())

    def ordered(self, order: Tensor) -> Clusters:
        """The same clusters with cluster `order[c, k]` of class `c` in place `k`; `order` is `(C, K)`."""
        rank = order.argsort(dim=1)  # place of each old cluster in the new order
        moved = rank.gather(1, self.assignment.clamp_min(0)).masked_fill(self.assignment < 0, -1)
        centroids = self.centroids.gather(1, order[:, :, None].expand_as(self.centroids))
        return dataclasses.replace(self, centroids=centroids, valid=self.valid.gather(1, order), assignment=moved)

    def of(self, rows: slice | Tensor) -> Clusters:
        """The clusters of some classes, as a slice or a mask `(C,)`."""
        return dataclasses.replace(self, **{name: getattr(self, name)[rows] for name in BY_CLASS})


def settle(
    points: Tensor,
    valid: Tensor,
    centroids: Tensor,
    usable: Tensor,
    *,
    backend: str,
    assignment: Tensor | None = None,
    unit: bool = False,
) -> Clusters:
    """Final assignment; empty clusters go to the end and are marked invalid.

    Args:
        points: `(C, N, D)`, zero where not valid; of unit length for `unit`.
        valid: `(C, N)` boolean.
        centroids: `(C, K, D)`.
        usable: `(C, K)` boolean, at least one in a class with a valid point.
        backend: see `Clusters`.
        assignment: `(C, N)`; the nearest usable centroid if `None`. Negative ones belong to no cluster.
        unit: see `Clusters`.
    """
    if assignment is None:
        assignment = nearest(points, centroids, usable)
    found = Clusters(
        centroids, usable, assignment.masked_fill(~valid, -1), torch.zeros_like(points[:, 0, 0]), backend, unit
    )
    used = found.sizes > 0
    found.centroids, found.valid = centroids * used[:, :, None], used
    found = found.ordered(used.sort(dim=1, descending=True, stable=True)[1])
    found.objective = objective(points, found)
    return found


def objective(points: Tensor, clusters: Clusters) -> Tensor:
    """Sum `(C,)` of squared distances of the assigned points `(C, N, D)` to the centroid of their cluster."""
    count = clusters.centroids.shape[1]
    row = clusters.assignment.clamp_min(0) + torch.arange(len(points), device=points.device)[:, None] * count
    own = clusters.centroids.flatten(0, 1).index_select(0, row.flatten()).view_as(points)
    return (own.sub_(points).square_().sum(dim=2) * (clusters.assignment >= 0)).sum(dim=1)


def joined(parts: Sequence[Clusters]) -> Clusters:
    """Clusters of all classes from those of some each, in order."""
    found: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in BY_CLASS}
    return dataclasses.replace(parts[0], **found)


def chosen(where: Tensor, first: Clusters, second: Clusters) -> Clusters:
    """`first` in the classes where `where` `(C,)` holds, `second` in the others."""
    return dataclasses.replace(
        second,
        centroids=torch.where(where[:, None, None], first.centroids, second.centroids),
        valid=torch.where(where[:, None], first.valid, second.valid),
        assignment=torch.where(where[:, None], first.assignment, second.assignment),
        objective=torch.where(where, first.objective, second.objective),
    )


def clustered(clusters: Clusters, points: Tensor, valid: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The points as they were when they were clustered.

    Args:
        clusters: of the points.
        points: `(C, N, D)`, or `(N, D)` for one class.
        valid: boolean, shaped like `points` without `D`; those that have a cluster if `None`.

    Returns:
        Points `(C, N, D)`, scaled to unit length where the clusters are `unit`, and the mask `(C, N)`.

    Raises:
        ArgumentError: if points and clusters do not fit.
    """
    member = clusters.assignment >= 0
    batched = (points.shape if points.ndim == 3 else (1, *points.shape))[:2] == member.shape
    if not batched or points.shape[-1] != clusters.centroids.shape[2]:
        expected = (*member.shape, clusters.centroids.shape[2])
        raise ArgumentError("points", tuple(points.shape), f"give the points that were clustered, {expected}")
    if valid is None:
        valid = member if points.ndim == 3 else member[0]
    points, valid = as_batch(points, valid)
    return (F.normalize(points, dim=2) if clusters.unit else points), valid
