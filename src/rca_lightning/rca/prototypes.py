"""From regions in memory to prototypes: the cluster centres of each class (RCA, section 3.4)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.clustering.cluster import REMOVED_METHODS, ClusteringBackend, ClusteringMethod, cluster
from rca_lightning.clustering.clusters import Clusters, concat_classes
from rca_lightning.errors import ArgumentError


@dataclass
class Prototypes:
    """Prototypes of some classes.

    Attributes:
        vectors: `(C, K, D)`, unit length where valid, 0 elsewhere.
        valid: `(C, K)` boolean.
        clusters: what they come from.
        num_requested: `(C,)` int64, how many a class was to get, or got where some were dropped.
    """

    vectors: Tensor
    valid: Tensor
    clusters: Clusters
    num_requested: Tensor


@check_arguments(gone=REMOVED_METHODS)
@torch.no_grad()
def make_prototypes(
    points: Tensor,
    valid: Tensor,
    num_prototypes: int,
    *,
    clustering: ClusteringMethod,
    backend: ClusteringBackend,
    iterations: int,
    seed: int,
    regions_per_prototype: int | None = None,
    drop_below: float | None = None,
    score: Callable[[Tensor], Tensor] | None = None,
    device: torch.device | None = None,
) -> Prototypes:
    """Cluster the regions of each class; prototypes are the centres (RCA, section 3.4, equation (6)).

    Args:
        points: `(C, N, D)` unit vectors on any device; a few classes at a time are read, see `class_blocks`.
        valid: `(C, N)` boolean.
        num_prototypes: `K`, the most of a class.
        clustering: see `method` of `cluster`, as `backend` and `iterations`.
        backend: of k-means.
        iterations: at most.
        seed: of the seeding.
        regions_per_prototype: a class gets one prototype for so many regions, up to `K`; `None`: `K` for all.
        drop_below: score under which a prototype is dropped; the best of a class stays. `None`: none is dropped.
        score: gives `(C, K)` probabilities of prototypes `(C, K, D)`, for `drop_below`.
        device: where to compute; `None`: where the points are.
    """
    device = device or points.device
    most = torch.full_like(valid[:, 0], num_prototypes, dtype=torch.long, device=device)  # (C,)
    if regions_per_prototype is not None:
        most = prototypes_per_class(valid.sum(dim=1).to(device), num_prototypes, regions_per_prototype)
    clusters = concat_classes(
        [
            cluster(
                part,
                num_prototypes,
                method=clustering,
                valid=used,
                iterations=iterations,
                seed=seed,
                backend=backend,
                clusters_per_class=most[rows],
                part_of=(rows.start, len(points)),
            )
            for rows, part, used in class_blocks(points, valid, device)
        ]
    )
    if drop_below is not None and score is not None:
        clusters = drop_unlike(clusters, score(F.normalize(clusters.centroids, dim=2)), drop_below)
        most = clusters.valid.sum(dim=1)
    # A mean of unit vectors is shorter than they are; attention compares directions.
    return Prototypes(F.normalize(clusters.centroids, dim=2), clusters.valid, clusters, most)


def prototypes_per_class(counts: Tensor, num_prototypes: int, regions_per_prototype: int) -> Tensor:
    """Number of prototypes of each class by the regions it has, so that each rests on enough of them.

    Args:
        counts: `(C,)`, regions of each class.
        num_prototypes: the most a class may have, `K`.
        regions_per_prototype: regions that a further prototype takes.

    Returns:
        `(C,)` int64 in `[0, K]`: `counts // regions_per_prototype`, at least 1 where there is a region.

    Raises:
        ArgumentError: if a number is below 1.

    Example:
        >>> prototypes_per_class(torch.tensor([0, 3, 45, 500]), 10, 20).tolist()
        [0, 1, 2, 10]
    """
    for name, value in (("num_prototypes", num_prototypes), ("regions_per_prototype", regions_per_prototype)):
        if value < 1:
            raise ArgumentError(name, value, "give at least 1")
    wanted = torch.div(counts, regions_per_prototype, rounding_mode="floor").long().clamp(1, num_prototypes)
    return wanted * (counts > 0)


BLOCK_BYTES = 2**30
"""Of the float32 points of a block. Clustering holds a few times as much; a class larger than this is a block."""


def class_blocks(points: Tensor, valid: Tensor, device: torch.device) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Points as float32 on the device, a bounded number of classes at a time.

    Args:
        points: `(C, N, D)` on any device, in any precision.
        valid: `(C, N)` boolean.
        device: where they are wanted.

    Yields:
        The classes, their points `(c, N, D)` and which of these are valid `(c, N)`.
    """
    step = max(1, BLOCK_BYTES // max(1, 4 * points.shape[1] * points.shape[2]))
    for first in range(0, len(points), step):
        rows = slice(first, min(first + step, len(points)))
        yield rows, points[rows].to(device, non_blocking=True).float(), valid[rows].to(device)


def drop_unlike(clusters: Clusters, scores: Tensor, below: float) -> Clusters:
    """Drop prototypes that score low for their own class; the best one of a class always stays.

    Regions of a dropped prototype belong to none (-1): they are the likely mistakes, and would blur the cluster they
    were moved to.

    Args:
        clusters: of `C` classes and `K` prototypes.
        scores: `(C, K)`, of each prototype for its own class, as probability or as margin; unused where not valid.
        below: the least score that stays.

    Returns:
        The clusters, valid ones first and in their order; their objective stays that of the whole clustering.

    Raises:
        ArgumentError: if `scores` has another shape or is not finite for a valid prototype.
    """
    if scores.shape != clusters.valid.shape:
        raise ArgumentError("scores", tuple(scores.shape), f"give {tuple(clusters.valid.shape)}, one a prototype")
    if not torch.isfinite(scores[clusters.valid]).all():
        raise ArgumentError("scores", "non-finite", "valid prototypes need finite scores")
    scores = scores.masked_fill(~clusters.valid, -torch.inf)
    best = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    return clusters.select(clusters.valid & ((scores >= below) | best))
