"""From regions in memory to prototypes: clustering and what may follow it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.cluster import ClusteringBackend, ClusteringMethod, cluster
from rca_lightning.clustering.clusters import Clusters, clustered, joined, settle
from rca_lightning.clustering.concentration import distance_sums, relative_spread
from rca_lightning.clustering.merging import merge_copies, reseed_dead
from rca_lightning.errors import ArgumentError


def prototypes_per_class(counts: Tensor, num_prototypes: int, regions_per_prototype: int) -> Tensor:
    """Prototypes of each class by the regions it has, so that each rests on enough of them.

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


@torch.no_grad()
def drop_unlike(clusters: Clusters, points: Tensor, scores: Tensor, below: float) -> Clusters:
    """Drop prototypes that score low for their own class; the best one of a class always stays.

    Regions of a dropped prototype belong to none (-1): they are the likely mistakes, and would
    blur the cluster they were moved to.

    Args:
        clusters: of `C` classes and `K` prototypes.
        points: `(C, N, D)` or `(N, D)`, the points that were clustered.
        scores: `(C, K)`, of each prototype for its own class, as probability or as margin; unused where not valid.
        below: the least score that stays.

    Returns:
        The clusters, valid ones first and in their order.

    Raises:
        ArgumentError: if `scores` has another shape or is not finite for a valid prototype.
    """
    if scores.shape != clusters.valid.shape:
        raise ArgumentError("scores", tuple(scores.shape), f"give {tuple(clusters.valid.shape)}, one a prototype")
    if not torch.isfinite(scores[clusters.valid]).all():
        raise ArgumentError("scores", "non-finite", "valid prototypes need finite scores")
    points, _ = clustered(clusters, points)
    scores = scores.masked_fill(~clusters.valid, -torch.inf)
    best = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    kept = clusters.valid & ((scores >= below) | best)
    own = clusters.assignment.clamp_min(0)
    served = (clusters.assignment >= 0) & kept.gather(1, own)
    return settle(
        points, served, clusters.centroids, kept, backend=clusters.backend, assignment=own, unit=clusters.unit
    )


@dataclass
class Prototypes:
    """Prototypes of some classes.

    Attributes:
        vectors: `(C, K, D)`, unit length where valid, 0 elsewhere.
        valid: `(C, K)` boolean.
        factors: `(C, K)`, what the attention temperature of each is multiplied by.
        clusters: what they come from.
        num_requested: `(C,)` int64, how many a class was to get, or got where copies were merged or some dropped.
    """

    vectors: Tensor
    valid: Tensor
    factors: Tensor
    clusters: Clusters
    num_requested: Tensor


@dataclass(frozen=True, kw_only=True)
class PrototypeMaker:
    """Clusters the regions of every class; further steps are optional.

    Each argument is the one of `RegionMemoryCallback` of its name, which says what it does and what its default is.
    The steps run in the order of the arguments.

    Raises:
        ArgumentError: for a value out of its range.
    """

    clustering: ClusteringMethod
    backend: ClusteringBackend
    iterations: int
    restarts: int
    warm_start: bool
    regions_per_prototype: int | None
    reseed: bool
    merge_above: float | None
    drop_below: float | None
    concentration: bool

    def __post_init__(self) -> None:
        for name, value in (("iterations", self.iterations), ("restarts", self.restarts)):
            if value < 1:
                raise ArgumentError(name, value, "give at least 1")
        if self.regions_per_prototype is not None and self.regions_per_prototype < 1:
            raise ArgumentError("regions_per_prototype", self.regions_per_prototype, "give at least 1, or null")
        if self.merge_above is not None and not -1 < self.merge_above < 1:
            raise ArgumentError("merge_above", self.merge_above, "give a cosine between -1 and 1, such as 0.9, or null")
        if self.drop_below is not None and not 0 <= self.drop_below <= 1:
            raise ArgumentError("drop_below", self.drop_below, "give a probability in [0, 1], or null")

    @torch.no_grad()
    def __call__(
        self,
        points: Tensor,
        valid: Tensor,
        number: int,
        *,
        seed: int = 0,
        last: tuple[Tensor, Tensor] | None = None,
        score: Callable[[Tensor], Tensor] | None = None,
        device: torch.device | None = None,
    ) -> Prototypes:
        """Prototypes of every class, on `device`; points are read a few classes at a time, see `class_blocks`.

        Args:
            points: `(C, N, D)` unit vectors, on any device.
            valid: `(C, N)` boolean.
            number: `K`.
            seed: of the seeding.
            last: prototypes `(C, K, D)` and which are valid `(C, K)`, for a warm start.
            score: gives `(C, K)` probabilities of prototypes `(C, K, D)`, for `drop_below`; `None`: none are dropped.
            device: where to compute; `None`: where the points are.
        """
        device = device or points.device
        most = torch.full_like(valid[:, 0], number, dtype=torch.long, device=device)
        if self.regions_per_prototype is not None:
            most = prototypes_per_class(valid.sum(dim=1).to(device), number, self.regions_per_prototype)
        last = last if self.warm_start else None
        blocks = partial(class_blocks, points, valid, device)
        found = joined(
            [self._clusters(*block, number, seed=seed, last=last, most=most, classes=len(points)) for block in blocks()]
        )
        if self.drop_below is not None and score is not None:
            scores = score(F.normalize(found.centroids, dim=2))
            found = joined([drop_unlike(found.of(r), part, scores[r], self.drop_below) for r, part, _ in blocks()])
        factors = None
        if self.concentration:
            factors = relative_spread(found, torch.cat([distance_sums(part, found.of(r)) for r, part, _ in blocks()]))
        fewer = self.merge_above is not None or self.drop_below is not None
        return _prototypes(found, num_requested=found.valid.sum(dim=1) if fewer else most, factors=factors)

    def _clusters(
        self,
        rows: slice,
        points: Tensor,
        valid: Tensor,
        number: int,
        *,
        seed: int,
        last: tuple[Tensor, Tensor] | None,
        most: Tensor,
        classes: int,
    ) -> Clusters:
        """Clusters of the classes `rows` of all `classes`, without copies of each other."""
        initial, initial_valid = (None, None) if last is None else (last[0][rows], last[1][rows])
        found = cluster(
            points,
            number,
            method=self.clustering,
            valid=valid,
            iterations=self.iterations,
            seed=seed,
            backend=self.backend,
            restarts=self.restarts,
            initial=initial,
            initial_valid=initial_valid,
            clusters_per_class=most[rows],
            part_of=(rows.start, classes),
        )
        if self.reseed:
            found = reseed_dead(found, points, valid, clusters_per_class=most[rows])
        if self.merge_above is not None:
            found = merge_copies(found, points, valid, self.merge_above)
        return found

    def plain(
        self, points: Tensor, valid: Tensor, number: int, *, seed: int, device: torch.device | None = None
    ) -> Prototypes:
        """K-means and no further step, for a class that no CAM head scores and whose copies hurt nobody."""
        device = device or points.device
        found = joined(
            [
                cluster(
                    part,
                    number,
                    valid=used,
                    iterations=self.iterations,
                    seed=seed,
                    backend=self.backend,
                    part_of=(rows.start, len(points)),
                )
                for rows, part, used in class_blocks(points, valid, device)
            ]
        )
        return _prototypes(found, num_requested=torch.full_like(found.valid[:, 0], number, dtype=torch.long))


def _prototypes(clusters: Clusters, *, num_requested: Tensor, factors: Tensor | None = None) -> Prototypes:
    # A mean of unit vectors is shorter than they are; attention compares directions.
    vectors = F.normalize(clusters.centroids, dim=2)
    return Prototypes(
        vectors,
        clusters.valid,
        torch.ones_like(vectors[:, :, 0]) if factors is None else factors,
        clusters,
        num_requested,
    )
