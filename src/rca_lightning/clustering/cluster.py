"""Clustering of the memory, class by class (RCA, section 3.4)."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.clustering.clusters import Clusters, as_batch, concat_classes, finalize_clusters
from rca_lightning.clustering.kmeans import PerClassGenerator, greedy_seeds, lloyd
from rca_lightning.clustering.kmeans_faiss import has_gpu_build, lloyd_by_faiss
from rca_lightning.clustering.sinkhorn import balanced
from rca_lightning.errors import ArgumentError, refuse_removed

__all__ = ["ClusteringBackend", "ClusteringMethod", "Clusters", "cluster", "kmeans"]

logger = logging.getLogger(__name__)

ClusteringBackend = Literal["auto", "faiss", "torch"]
ClusteringMethod = Literal["kmeans", "spherical", "sinkhorn"]
CACHED_BYTES = 2**23
"""Of points that a processor clusters together: classes that its cache holds take half the time of all at once."""

_WITH_FAISS = ("kmeans", "spherical")
_UNIT = ("spherical", "sinkhorn")
REMOVED_METHODS = ("gmm", "farthest")
"""Of earlier versions."""

_NO_START = "gone since 0.2; every clustering starts from k-means++ seeds"


@refuse_removed(
    restarts="gone since 0.2; greedy k-means++ seeds make one run enough", initial=_NO_START, initial_valid=_NO_START
)
@check_arguments(gone=REMOVED_METHODS)
@torch.no_grad()
def cluster(
    points: Tensor,
    num_clusters: int,
    *,
    method: ClusteringMethod = "kmeans",
    valid: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
    backend: ClusteringBackend = "auto",
    clusters_per_class: Tensor | None = None,
    part_of: tuple[int, int] | None = None,
) -> Clusters:
    """Cluster each class by itself (RCA, arXiv 2203.09653, section 3.4).

    Args:
        points: `(C, N, D)`, or `(N, D)` for one class.
        num_clusters: `K`, the most a class may have.
        method: `"kmeans"` from greedy k-means++ seeds; `"spherical"`: k-means by cosine, centroids of unit length;
            `"sinkhorn"`: the same with clusters of about equal size.
        valid: boolean, shaped like `points` without `D`; all points count if `None`.
        iterations: steps at most; 20 is past the knee for unit vectors and K up to 20.
        seed: of the seeding.
        backend: `"faiss"` (on the GPU where the points and a GPU build are), `"torch"` (all classes in one
            batch), or `"auto"`: FAISS where it is installed and can run where the points are: torch on a GPU is ten
            times as fast as FAISS on the processor. Only `"kmeans"` and `"spherical"` can run in FAISS.
        clusters_per_class: `(C,)` int64 in `[0, K]`, the most of each class; `K` if `None`. A class with 0 is left out
            like one without a valid point.
        part_of: `(first, total)` where these are the classes from `first` on of `total` that are clustered a few at a
            time: they start from the seeds they get when all are clustered at once; `None`: these are all.

    Returns:
        The clusters, on the device of `points`.

    Raises:
        ArgumentError: for an unknown option, a bad shape, a number below 1 or points that are not finite.
        MissingExtraError: if FAISS is asked for and is not installed.

    Example:
        >>> points = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 3.0]]), dim=1)
        >>> cluster(points, 2, method="spherical", backend="torch").sizes[0].sort()[0].tolist()
        [1, 2]
    """
    check_method(method, backend)
    if num_clusters < 1:
        raise ArgumentError("num_clusters", num_clusters, "give at least 1")
    points, valid = as_batch(points, valid)
    if method in _UNIT:
        points = F.normalize(points, dim=2)
    allowed = _allowed(clusters_per_class, len(points), num_clusters).to(points.device)  # (C, K)
    valid = valid & allowed.any(dim=1, keepdim=True)
    first, total = part_of or (0, len(points))
    parts = []
    for rows in _blocks(points):
        draws = PerClassGenerator(seed, total, first + rows.start, rows.stop - rows.start)
        seeds, distinct = greedy_seeds(points[rows], valid[rows], num_clusters, draws)
        usable = distinct & allowed[rows]
        parts.append(_from_seeds(points[rows], valid[rows], seeds, usable, method, backend, iterations))
    clusters = concat_classes(parts)
    logger.debug("%s of %d classes x %d points, K=%d: %s", method, *valid.shape, num_clusters, clusters.backend)
    return clusters


@check_arguments
def kmeans(
    points: Tensor,
    num_clusters: int,
    *,
    valid: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
    backend: ClusteringBackend = "auto",
) -> Clusters:
    """k-means of each class by itself, from greedy k-means++ seeds: `cluster` with its defaults.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
        >>> kmeans(points, 2, backend="torch").assignment[0].unique().tolist()
        [0, 1]
    """
    return cluster(points, num_clusters, valid=valid, iterations=iterations, seed=seed, backend=backend)


@check_arguments(gone=REMOVED_METHODS)
def check_method(method: ClusteringMethod, backend: ClusteringBackend) -> None:
    """Refuse a backend that does not have the method."""
    if backend == "faiss" and method not in _WITH_FAISS:
        raise ArgumentError("backend", backend, f"give 'auto' or 'torch': FAISS has no {method!r}")


def _runs_in_faiss(backend: ClusteringBackend, device: torch.device) -> bool:
    if backend != "auto":
        return backend == "faiss"
    return importlib.util.find_spec("faiss") is not None and (device.type == "cpu" or has_gpu_build())


def _allowed(clusters_per_class: Tensor | None, classes: int, num_clusters: int) -> Tensor:
    """Which clusters `(C, K)` each class may have."""
    if clusters_per_class is None:
        return torch.ones(classes, num_clusters, dtype=torch.bool)
    if clusters_per_class.shape != (classes,):
        raise ArgumentError("clusters_per_class", tuple(clusters_per_class.shape), f"give ({classes},)")
    if bool(((clusters_per_class < 0) | (clusters_per_class > num_clusters)).any()):
        raise ArgumentError("clusters_per_class", clusters_per_class.tolist(), f"give numbers in [0, {num_clusters}]")
    return torch.arange(num_clusters)[None] < clusters_per_class.cpu()[:, None]


def _blocks(points: Tensor) -> Iterator[slice]:
    """Classes that are clustered together: on a GPU all, on a processor as many as stay in its cache, one a thread."""
    step = len(points)
    if points.device.type == "cpu" and len(points):
        step = max(torch.get_num_threads(), CACHED_BYTES // points[0].nbytes)
    for first in range(0, len(points), max(1, step)):
        yield slice(first, min(first + step, len(points)))


def _from_seeds(
    points: Tensor,
    valid: Tensor,
    seeds: Tensor,
    usable: Tensor,
    method: ClusteringMethod,
    backend: ClusteringBackend,
    iterations: int,
) -> Clusters:
    """Clusters of some classes from their seeds `(c, K, D)`, of which some are usable `(c, K)`."""
    unit = method in _UNIT
    if method == "sinkhorn":
        centroids, assignment = balanced(points, valid, seeds, usable, iterations)
        ran_on = f"torch-{points.device.type}"
        return finalize_clusters(points, valid, centroids, usable, backend=ran_on, assignment=assignment)
    if _runs_in_faiss(backend, points.device):
        centroids, ran_on = lloyd_by_faiss(points, valid, seeds, usable, iterations, unit)
    else:
        centroids = lloyd(points, valid, seeds, usable, iterations, unit=unit)
        ran_on = f"torch-{points.device.type}"
    return finalize_clusters(points, valid, centroids, usable, backend=ran_on)
