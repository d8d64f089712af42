"""Clustering of the memory, class by class (RCA, section 3.4)."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from functools import partial
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.clusters import Clusters, as_batch, chosen, joined, settle
from rca_lightning.clustering.farthest import cells, farthest, farthest_seeds
from rca_lightning.clustering.kmeans import PerClassGenerator, by_distance, fill_seeds, greedy_seeds, lloyd
from rca_lightning.clustering.kmeans_faiss import lloyd_by_faiss
from rca_lightning.clustering.mixture import mixture
from rca_lightning.clustering.ordering import in_order_of
from rca_lightning.clustering.sinkhorn import balanced
from rca_lightning.errors import ArgumentError

__all__ = ["ClusteringBackend", "ClusteringMethod", "Clusters", "cluster", "kmeans"]

logger = logging.getLogger(__name__)

ClusteringBackend = Literal["auto", "faiss", "torch"]
ClusteringMethod = Literal["kmeans", "spherical", "sinkhorn", "gmm", "farthest"]
CACHED_BYTES = 2**23
"""Of points that a processor clusters together: classes that its cache holds take half the time of all at once."""

_WITH_FAISS = ("kmeans", "spherical")
_UNIT = ("spherical", "sinkhorn")


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
    restarts: int = 1,
    initial: Tensor | None = None,
    initial_valid: Tensor | None = None,
    clusters_per_class: Tensor | None = None,
    part_of: tuple[int, int] | None = None,
) -> Clusters:
    """Cluster each class by itself.

    Args:
        points: `(C, N, D)`, or `(N, D)` for one class.
        num_clusters: `K`, the most a class may have.
        method: `"kmeans"` from greedy k-means++ seeds; `"spherical"`: k-means by cosine, centroids of unit length;
            `"sinkhorn"`: the same with clusters of about equal size; `"gmm"`: a Gaussian mixture with one
            variance a class, points count in part for several means; `"farthest"`: means of the cells of
            farthest points, which covers rare regions but not by their number.
        valid: boolean, shaped like `points` without `D`; all points count if `None`.
        iterations: steps at most; 20 is past the knee for unit vectors and K up to 20. `"farthest"` has none.
        seed: of the seeding.
        backend: `"faiss"` (on the GPU where the points and a GPU build are), `"torch"` (all classes in one
            batch), or `"auto"`: FAISS where it is installed. Only `"kmeans"` and `"spherical"` can run in FAISS.
        restarts: runs, each from other seeds; each class keeps the one of lowest objective.
        initial: `(C, K, D)` (or `(K, D)`), start from these prototypes (of the last epoch); cluster `k` stays near
            prototype `k` as long as all `k` before it are in use. Missing ones and those no point is
            nearest to are seeded; a class of at most `K` points starts from its points. Further restarts ignore
            `initial`, but are put in its order.
        initial_valid: `(C, K)` boolean, which of `initial` exist; those that are not all zero if `None`.
        clusters_per_class: `(C,)` int64 in `[0, K]`, the most of each class; `K` if `None`. A class with 0 is left out
            like one without a valid point.
        part_of: `(first, total)` where these are the classes from `first` on of `total` that are clustered a few at a
            time: they start from the seeds they get when all are clustered at once, but for prototypes that `initial`
            lacks; `None`: these are all.

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
    use_faiss = _use_faiss(backend, method)
    for name, value in (("num_clusters", num_clusters), ("restarts", restarts)):
        if value < 1:
            raise ArgumentError(name, value, "give at least 1")
    points, valid = as_batch(points, valid)
    if method in _UNIT:
        points = F.normalize(points, dim=2)
    allowed = _allowed(clusters_per_class, len(points), num_clusters).to(points.device)
    valid = valid & allowed.any(dim=1, keepdim=True)
    start = _start(initial, initial_valid, (len(points), num_clusters, points.shape[2]), points.device, method)
    first, total = part_of or (0, len(points))
    run = partial(_restarted, method, restarts=restarts, iterations=iterations, use_faiss=use_faiss)
    best = joined(
        [
            run(
                points[rows],
                valid[rows],
                allowed[rows],
                None if start is None else (start[0][rows], start[1][rows]),
                PerClassGenerator(seed, total, first + rows.start, rows.stop - rows.start),
            )
            for rows in _blocks(points)
        ]
    )
    logger.debug("%s of %d classes x %d points, K=%d: %s", method, *valid.shape, num_clusters, best.backend)
    return best


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


def _use_faiss(backend: ClusteringBackend, method: ClusteringMethod) -> bool:
    if method not in get_args(ClusteringMethod):
        raise ArgumentError("method", method, f"give one of {', '.join(get_args(ClusteringMethod))}")
    if backend not in get_args(ClusteringBackend):
        raise ArgumentError("backend", backend, "give 'auto', 'faiss' or 'torch'")
    if backend == "faiss" and method not in _WITH_FAISS:
        raise ArgumentError("backend", backend, f"give 'auto' or 'torch': FAISS has no {method!r}")
    if backend == "auto":
        return method in _WITH_FAISS and importlib.util.find_spec("faiss") is not None
    return backend == "faiss"


def _allowed(clusters_per_class: Tensor | None, classes: int, num_clusters: int) -> Tensor:
    """Which clusters `(C, K)` each class may have."""
    if clusters_per_class is None:
        return torch.ones(classes, num_clusters, dtype=torch.bool)
    if clusters_per_class.shape != (classes,):
        raise ArgumentError("clusters_per_class", tuple(clusters_per_class.shape), f"give ({classes},)")
    if bool(((clusters_per_class < 0) | (clusters_per_class > num_clusters)).any()):
        raise ArgumentError("clusters_per_class", clusters_per_class.tolist(), f"give numbers in [0, {num_clusters}]")
    return torch.arange(num_clusters)[None] < clusters_per_class.cpu()[:, None]


def _start(
    initial: Tensor | None,
    initial_valid: Tensor | None,
    shape: tuple[int, int, int],
    device: torch.device,
    method: ClusteringMethod,
) -> tuple[Tensor, Tensor] | None:
    """Prototypes to start from, zero where missing, and which exist."""
    if initial is None:
        return None
    if initial.ndim == 2:
        initial, initial_valid = initial[None], None if initial_valid is None else initial_valid[None]
    given = initial.ne(0).any(dim=2) if initial_valid is None else initial_valid
    if initial.shape != shape or given.shape != shape[:2]:
        found = (tuple(initial.shape), tuple(given.shape))
        raise ArgumentError("initial, initial_valid", found, f"give {shape} and {shape[:2]}, as the points and K need")
    initial, given = initial.to(device), given.to(device)
    initial = torch.where(given[:, :, None], initial.float(), torch.zeros(shape, device=device))
    if not torch.isfinite(initial).all():
        raise ArgumentError("initial", "non-finite", "valid prototypes must be finite numbers")
    return (F.normalize(initial, dim=2) if method in _UNIT else initial), given


def _blocks(points: Tensor) -> Iterator[slice]:
    """Classes that are clustered together: on a GPU all, on a processor as many as stay in its cache, one a thread."""
    step = len(points)
    if points.device.type == "cpu" and len(points):
        step = max(torch.get_num_threads(), CACHED_BYTES // points[0].nbytes)
    for first in range(0, len(points), max(1, step)):
        yield slice(first, min(first + step, len(points)))


def _restarted(
    method: ClusteringMethod,
    points: Tensor,
    valid: Tensor,
    allowed: Tensor,
    start: tuple[Tensor, Tensor] | None,
    draws: PerClassGenerator,
    *,
    restarts: int,
    iterations: int,
    use_faiss: bool,
) -> Clusters:
    """The best of several runs, class by class."""
    # No more points than prototypes: then the points are the prototypes.
    few = valid.sum(dim=1) <= allowed.sum(dim=1)
    count = allowed.shape[1]
    best: Clusters | None = None
    for attempt in range(restarts):
        if start is None or attempt > 0:
            seed_with = farthest_seeds if method == "farthest" else greedy_seeds
            seeds, usable = seed_with(points, valid, count, draws)
        else:
            propose = farthest if method == "farthest" else by_distance(count, draws)
            seeds, usable = fill_seeds(points, valid, start[0], start[1] & allowed & ~few[:, None], draws, propose)
        found = _run(method, points, valid, seeds, usable & allowed, iterations, use_faiss)
        if start is not None:
            found = chosen(few | (attempt > 0), in_order_of(found, *start), found)
        best = found if best is None else chosen(found.objective < best.objective, found, best)
    assert best is not None  # restarts is at least 1
    return best


def _run(
    method: ClusteringMethod,
    points: Tensor,
    valid: Tensor,
    seeds: Tensor,
    usable: Tensor,
    iterations: int,
    use_faiss: bool,
) -> Clusters:
    """One run from its seeds."""
    backend, assignment, unit = f"torch-{points.device.type}", None, method in _UNIT
    if method == "sinkhorn":
        centroids, assignment = balanced(points, valid, seeds, usable, iterations)
    elif method == "gmm":
        centroids, assignment = mixture(points, valid, seeds, usable, iterations)
    elif method == "farthest":
        centroids, assignment = cells(points, valid, seeds, usable)
    elif use_faiss:
        centroids, backend = lloyd_by_faiss(points, valid, seeds, usable, iterations, unit)
    else:
        centroids = lloyd(points, valid, seeds, usable, iterations, unit=unit)
    return settle(points, valid, centroids, usable, backend=backend, assignment=assignment, unit=unit)
