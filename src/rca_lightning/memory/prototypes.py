"""From regions in memory to prototypes: clustering and what may follow it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.memory.allotment import prototypes_per_class
from rca_lightning.memory.clustering import ClusteringBackend, ClusteringMethod, Clusters, cluster
from rca_lightning.memory.concentration import concentration
from rca_lightning.memory.merging import merge_copies, reseed_dead
from rca_lightning.memory.pruning import drop_unlike


@dataclass
class Prototypes:
    """Prototypes of some classes.

    Attributes:
        vectors: `(C, K, D)`, unit length where valid, 0 elsewhere.
        valid: `(C, K)` boolean.
        factors: `(C, K)`, what the attention temperature of each is multiplied by.
        clusters: what they come from.
        asked: `(C,)` int64, how many a class was to get, or got where copies were merged or some dropped.
    """

    vectors: Tensor
    valid: Tensor
    factors: Tensor
    clusters: Clusters
    asked: Tensor


class PrototypeMaker:
    """Clusters the regions of every class; further steps are optional and run in the order of the arguments.

    Args:
        clustering: see `cluster`.
        backend: see `cluster`.
        iterations: see `cluster`.
        restarts: see `cluster`.
        warm_start: start from the last prototypes, so that prototype `k` stays what it was.
        regions_per_prototype: a class gets one prototype for so many regions, up to K; none: K.
        reseed: place prototypes without a region where the class is covered worst.
        merge_above: cosine above which two prototypes of a class become one, and the freed one is placed where the
            class is covered worst; none: never.
        drop_below: probability of its own class, by the first CAM head, under which a prototype is left out;
            none: never.
        concentration: whether tight prototypes get a lower and loose ones a higher attention temperature.
    """

    def __init__(
        self,
        *,
        clustering: ClusteringMethod = "kmeans",
        backend: ClusteringBackend = "auto",
        iterations: int = 20,
        restarts: int = 1,
        warm_start: bool = False,
        regions_per_prototype: int | None = None,
        reseed: bool = False,
        merge_above: float | None = None,
        drop_below: float | None = None,
        concentration: bool = False,
    ) -> None:
        for name, value in (("iterations", iterations), ("restarts", restarts)):
            if value < 1:
                raise ArgumentError(name, value, "give at least 1")
        if regions_per_prototype is not None and regions_per_prototype < 1:
            raise ArgumentError("regions_per_prototype", regions_per_prototype, "give at least 1, or null")
        if merge_above is not None and not -1 < merge_above < 1:
            raise ArgumentError("merge_above", merge_above, "give a cosine between -1 and 1, such as 0.9, or null")
        if drop_below is not None and not 0 <= drop_below <= 1:
            raise ArgumentError("drop_below", drop_below, "give a probability in [0, 1], or null")
        self.clustering: ClusteringMethod = clustering
        self.backend: ClusteringBackend = backend
        self.iterations = iterations
        self.restarts = restarts
        self.warm_start = warm_start
        self.regions_per_prototype = regions_per_prototype
        self.reseed = reseed
        self.merge_above = merge_above
        self.drop_below = drop_below
        self.concentration = concentration

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
    ) -> Prototypes:
        """Prototypes of every class.

        Args:
            points: `(C, N, D)` unit vectors.
            valid: `(C, N)` boolean.
            number: `K`.
            seed: of the seeding.
            last: prototypes `(C, K, D)` and which are valid `(C, K)`, for a warm start.
            score: gives `(C, K)` probabilities of prototypes `(C, K, D)`, for `drop_below`; `None`: none are dropped.
        """
        most = torch.full_like(valid[:, 0], number, dtype=torch.long)
        if self.regions_per_prototype is not None:
            most = prototypes_per_class(valid.sum(dim=1), number, self.regions_per_prototype)
        initial, initial_valid = last if self.warm_start and last is not None else (None, None)
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
            clusters_per_class=most,
        )
        if self.reseed:
            found = reseed_dead(found, points, valid, clusters_per_class=most)
        if self.merge_above is not None:
            found = merge_copies(found, points, valid, self.merge_above)
        if self.drop_below is not None and score is not None:
            found = drop_unlike(found, points, score(F.normalize(found.centroids, dim=2)), self.drop_below)
        factors = concentration(points, found) if self.concentration else torch.ones_like(found.centroids[:, :, 0])
        # A mean of unit vectors is shorter than they are; attention compares directions.
        fewer = self.merge_above is not None or self.drop_below is not None
        asked = found.valid.sum(dim=1) if fewer else most
        return Prototypes(F.normalize(found.centroids, dim=2), found.valid, factors, found, asked)
