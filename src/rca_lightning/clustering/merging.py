"""Prototypes that differ: merge copies, and place what is free where the class is covered worst."""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.clusters import BY_CLASS, Clusters, clustered, settle
from rca_lightning.clustering.kmeans import lloyd, nearest
from rca_lightning.errors import ArgumentError


@torch.no_grad()
def merge_copies(
    clusters: Clusters, points: Tensor, valid: Tensor | None, above: float, *, refine: int = 5
) -> Clusters:
    """Merge prototypes of a class that are all but the same, and use the freed ones elsewhere.

    Two prototypes whose cosine is above the limit become their mean, weighted by their sizes. Each freed one goes
    to the region that is least like its most similar prototype, if that region is no copy itself;
    `refine` steps of k-means follow. This is repeated until nothing changes. What cannot be placed becomes invalid.
    Classes without copies are returned as they are; in the others each point goes to its nearest prototype.

    Args:
        clusters: of `C` classes and `K` prototypes.
        points: `(C, N, D)` or `(N, D)`, the points that were clustered.
        valid: boolean, shaped like `points` without `D`; those that have a cluster if `None`.
        above: cosine in `(-1, 1)` beyond which two prototypes count as one.
        refine: steps of k-means after placing freed prototypes.

    Returns:
        Clusters without a pair of prototypes above the limit in any class.

    Raises:
        ArgumentError: if `above` is out of range or points and clusters do not fit.
    """
    if not -1 < above < 1:
        raise ArgumentError("above", above, "give a cosine between -1 and 1, such as 0.95")
    points, valid = clustered(clusters, points, valid)
    touched = _likeness(clusters.centroids, clusters.valid).flatten(1).amax(dim=1) > above
    if not touched.any():
        return clusters
    part = clusters.of(touched)
    found = _rearranged(part, points[touched], valid[touched], part.valid, above, refine)
    return _written(clusters, touched, found)


@torch.no_grad()
def reseed_dead(
    clusters: Clusters,
    points: Tensor,
    valid: Tensor | None = None,
    *,
    clusters_per_class: Tensor | None = None,
    refine: int = 5,
) -> Clusters:
    """Place prototypes that have no point at the regions that are covered worst.

    Each goes to the region least like its most similar prototype; `refine` steps of k-means follow, and a prototype
    that loses all its points by them is placed anew. With no region left that differs from all prototypes the rest
    stays invalid.

    Args:
        clusters: of `C` classes and `K` prototypes.
        points: `(C, N, D)` or `(N, D)`, the points that were clustered.
        valid: boolean, shaped like `points` without `D`; those that have a cluster if `None`.
        clusters_per_class: `(C,)`, the most of each class; `K` if `None`.
        refine: steps of k-means after placing.

    Raises:
        ArgumentError: if points and clusters do not fit.
    """
    points, valid = clustered(clusters, points, valid)
    places = clusters.valid.shape[1]
    most = torch.full_like(valid[:, 0], places, dtype=torch.long) if clusters_per_class is None else clusters_per_class
    allowed = torch.arange(places, device=points.device)[None] < most.to(points.device)[:, None]
    _, filled = _placed(points, valid, clusters.centroids, clusters.valid, allowed, _NO_LIMIT)
    touched = (filled != clusters.valid).any(dim=1)
    if not touched.any():
        return clusters
    part = clusters.of(touched)
    found = _rearranged(part, points[touched], valid[touched], allowed[touched], _NO_LIMIT, refine)
    return _written(clusters, touched, found)


def _rearranged(part: Clusters, points: Tensor, valid: Tensor, allowed: Tensor, above: float, refine: int) -> Clusters:
    """Merge, place what is free, refine, until nothing changes; each class by itself."""
    centroids, usable, sizes = part.centroids.clone(), part.valid.clone(), part.sizes
    for _ in range(_ROUNDS):
        centroids, usable = _merged(centroids, usable, sizes, above, part.unit)
        placed, filled = _placed(points, valid, centroids, usable, allowed, above)
        rows = (filled != usable).any(dim=1)
        if not rows.any():
            break
        where, filled = (points[rows], valid[rows]), filled[rows]
        placed = lloyd(*where, placed[rows], filled, refine, unit=part.unit)
        member = F.one_hot(nearest(where[0], placed, filled), filled.shape[1]) * where[1][:, :, None]
        centroids[rows], sizes[rows] = placed, member.sum(dim=1)
        usable[rows] = sizes[rows] > 0  # a new one may have taken all points of an old one
    centroids, usable = _merged(centroids, usable, sizes, above, part.unit)
    return settle(points, valid, centroids, usable, backend=part.backend, unit=part.unit)


def _likeness(centroids: Tensor, usable: Tensor) -> Tensor:
    """Cosines `(C, K, K)` of pairs of usable centroids, lower index first; -inf for anything else."""
    unit = F.normalize(centroids, dim=2)
    pairs = (usable[:, :, None] & usable[:, None]).triu(diagonal=1)
    return torch.bmm(unit, unit.transpose(1, 2)).masked_fill(~pairs, -torch.inf)


def _merged(centroids: Tensor, usable: Tensor, sizes: Tensor, above: float, unit: bool) -> tuple[Tensor, Tensor]:
    """Merge the most similar pair of each class until none is above the limit; the later of a pair is freed."""
    centroids, usable, weights = centroids.clone(), usable.clone(), sizes.clamp_min(1).to(centroids.dtype)
    places = usable.shape[1]
    while True:
        best, pair = _likeness(centroids, usable).flatten(1).max(dim=1)  # (C, K, K) -> (C, K * K)
        labels = torch.nonzero(best > above)[:, 0]
        if not len(labels):
            return centroids, usable
        stays, goes = pair[labels] // places, pair[labels] % places
        kept, freed = weights[labels, stays, None], weights[labels, goes, None]
        mean = (kept * centroids[labels, stays] + freed * centroids[labels, goes]) / (kept + freed)
        centroids[labels, stays] = F.normalize(mean, dim=1) if unit else mean
        weights[labels, stays] += weights[labels, goes]
        usable[labels, goes] = False


def _placed(
    points: Tensor, valid: Tensor, centroids: Tensor, usable: Tensor, allowed: Tensor, above: float
) -> tuple[Tensor, Tensor]:
    """Fill free allowed places with the points least like any centroid, while there are some below the limit."""
    centroids, usable = centroids.clone(), usable.clone()
    unit = F.normalize(points, dim=2)
    cosines = torch.bmm(unit, F.normalize(centroids, dim=2).transpose(1, 2))
    covered = cosines.masked_fill(~usable[:, None], -torch.inf).amax(dim=2).masked_fill(~valid, torch.inf)  # (C, N)
    while True:
        least, index = covered.min(dim=1)
        free = allowed & ~usable
        labels = torch.nonzero((least <= min(above, _SAME)) & free.any(dim=1))[:, 0]
        if not len(labels):
            return centroids, usable
        place = free[labels].int().argmax(dim=1)  # the first free one
        centroids[labels, place] = points[labels, index[labels]]
        usable[labels, place] = True
        cosines = torch.bmm(unit[labels], unit[labels, index[labels], :, None])[:, :, 0]
        covered[labels] = torch.maximum(covered[labels], cosines)
        covered[labels, index[labels]] = torch.inf  # a point is placed once, whatever its rounding


def _written(clusters: Clusters, rows: Tensor, part: Clusters) -> Clusters:
    """`clusters` with the classes of `rows` `(C,)` replaced."""
    found = {name: getattr(clusters, name).clone() for name in BY_CLASS}
    for name, values in found.items():
        values[rows] = getattr(part, name)
    return dataclasses.replace(clusters, **found)


_ROUNDS = 10
_NO_LIMIT = 2.0  # above every cosine
_SAME = 1 - 1e-6  # cosine of copies, up to rounding
