"""The result of a clustering, and the points it is made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
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


@dataclass
class Clusters:
    """Result of `cluster` for each class.

    Attributes:
        centroids: `(C, K, D)`; zero where not valid.
        valid: `(C, K)` boolean; a class of fewer than `K` distinct points has fewer clusters. Valid ones come first.
        assignment: `(C, N)` int64, the cluster of each point, -1 for invalid points.
        objective: `(C,)`, sum of squared distances of the points to their centroid; spherical and Sinkhorn clustering
            scale points to unit length first, so `2 - 2 cos` each.
        backend: what ran: `"faiss-gpu"`, `"faiss-cpu"`, or `"torch-<device>"`.
    """

    centroids: Tensor
    valid: Tensor
    assignment: Tensor
    objective: Tensor
    backend: str

    @property
    def sizes(self) -> Tensor:
        """Points of each cluster, `(C, K)` int64."""
        sizes = torch.zeros(self.valid.shape, dtype=torch.long, device=self.valid.device)
        return sizes.scatter_add_(1, self.assignment.clamp_min(0), (self.assignment >= 0).long())

    def select(self, kept: Tensor) -> Clusters:
        """The clusters where `kept` `(C, K)` holds, in their order; points of the others belong to none (-1)."""
        order = kept.sort(dim=1, descending=True, stable=True)[1]  # kept ones first
        rank = order.argsort(dim=1)  # place of each old cluster in the new order
        own = self.assignment.clamp_min(0)
        member = (self.assignment >= 0) & kept.gather(1, own)
        return dataclasses.replace(
            self,
            centroids=(self.centroids * kept[:, :, None]).gather(1, order[:, :, None].expand_as(self.centroids)),
            valid=kept.gather(1, order),
            assignment=rank.gather(1, own).masked_fill(~member, -1),
        )


def finalize_clusters(
    points: Tensor,
    valid: Tensor,
    centroids: Tensor,
    usable: Tensor,
    *,
    backend: str,
    assignment: Tensor | None = None,
) -> Clusters:
    """Assign points to centroids; clusters without a point go to the end and are marked invalid.

    Args:
        points: `(C, N, D)`, zero where not valid.
        valid: `(C, N)` boolean.
        centroids: `(C, K, D)`.
        usable: `(C, K)` boolean, at least one in a class with a valid point.
        backend: see `Clusters`.
        assignment: `(C, N)`; the nearest usable centroid if `None`.
    """
    if assignment is None:
        assignment = nearest(points, centroids, usable)
    row = assignment + torch.arange(len(points), device=points.device)[:, None] * centroids.shape[1]
    own = centroids.flatten(0, 1).index_select(0, row.flatten()).view_as(points)  # (C, N, D)
    objective = (own.sub_(points).square_().sum(dim=2) * valid).sum(dim=1)
    clusters = Clusters(centroids, usable, assignment.masked_fill(~valid, -1), objective, backend)
    return clusters.select(clusters.sizes > 0)


def concat_classes(parts: Sequence[Clusters]) -> Clusters:
    """Clusters of all classes from those of some each, in order."""
    columns = ("centroids", "valid", "assignment", "objective")
    tensors: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in columns}
    return dataclasses.replace(parts[0], **tensors)
