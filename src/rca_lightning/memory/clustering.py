"""Per-class k-means over the memory (RCA, section 3.4). The only file that imports FAISS."""

from __future__ import annotations

import importlib.util
import logging
import types
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError, require_extra
from rca_lightning.memory.seeding import greedy_seeds, squared_distances

logger = logging.getLogger(__name__)

ClusteringBackend = Literal["auto", "faiss", "torch"]


@dataclass
class Clusters:
    """Result of `kmeans` for each class.

    Attributes:
        centroids: `(C, K, D)`; zero where not valid.
        valid: `(C, K)` boolean; a class of fewer than `K` distinct points has fewer clusters. Valid ones come first.
        assignment: `(C, N)` int64, the cluster of each point, -1 for invalid points.
        objective: `(C,)`, sum of squared distances to the own centroid.
        backend: what ran: `"faiss-gpu"`, `"faiss-cpu"`, or `"torch-<device>"`.
    """

    centroids: Tensor
    valid: Tensor
    assignment: Tensor
    objective: Tensor
    backend: str


@torch.no_grad()
def kmeans(
    points: Tensor,
    num_clusters: int,
    *,
    valid: Tensor | None = None,
    iterations: int = 20,
    seed: int = 0,
    backend: ClusteringBackend = "auto",
) -> Clusters:
    """k-means of each class by itself, from greedy k-means++ seeds.

    Args:
        points: `(C, N, D)`, or `(N, D)` for one class.
        num_clusters: `K`.
        valid: boolean, shaped like `points` without `D`; all points count if `None`.
        iterations: Lloyd steps; 20 is past the knee for unit vectors and K up to 20.
        seed: of the seeding.
        backend: `"faiss"` (on the GPU where the points and a GPU build are), `"torch"` (all classes in one
            batch), or `"auto"`: FAISS where it is installed. The backend that ran is logged.

    Returns:
        The clusters, on the device of `points`.

    Raises:
        ArgumentError: for a bad shape, `num_clusters` below 1 or points that are not finite.
        MissingExtraError: if FAISS is asked for and is not installed.

    Example:
        >>> points = torch.tensor([[0.0, 0.0], [0.1, 0.0], [5.0, 5.0]])
        >>> kmeans(points, 2, backend="torch").assignment[0].unique().tolist()
        [0, 1]
    """
    if points.ndim == 2:
        points = points[None]
        valid = valid[None] if valid is not None else None
    if points.ndim != 3:
        raise ArgumentError("points", tuple(points.shape), "give (C, N, D) or (N, D)")
    if num_clusters < 1:
        raise ArgumentError("num_clusters", num_clusters, "give at least 1")
    if valid is None:
        valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    if points.shape[1] < 1 or valid.shape != points.shape[:2]:
        shapes = (tuple(points.shape), tuple(valid.shape))
        raise ArgumentError("points, valid", shapes, "give (C, N, D) and (C, N) with at least one point")
    # Unused slots may hold anything; zero keeps them from spreading NaN through masked sums.
    points = torch.where(valid[:, :, None], points.float(), points.new_zeros(()).float())
    if not torch.isfinite(points).all():
        raise ArgumentError("points", "non-finite", "remove NaN and infinity before clustering")
    seeds, distinct = greedy_seeds(points, valid, num_clusters, torch.Generator().manual_seed(seed))
    if _use_faiss(backend):
        centroids, name = _lloyd_faiss(points, valid, seeds, distinct, iterations)
    else:
        centroids, name = _lloyd_torch(points, valid, seeds, distinct, iterations), f"torch-{points.device.type}"
    logger.debug("k-means of %d classes x %d points, K=%d: %s", *points.shape[:2], num_clusters, name)
    return _settle(points, valid, centroids, distinct, name)


def _use_faiss(backend: ClusteringBackend) -> bool:
    if backend not in ("auto", "faiss", "torch"):
        raise ArgumentError("backend", backend, "give 'auto', 'faiss' or 'torch'")
    return backend == "faiss" or (backend == "auto" and importlib.util.find_spec("faiss") is not None)


def _lloyd_torch(points: Tensor, valid: Tensor, centroids: Tensor, distinct: Tensor, iterations: int) -> Tensor:
    for _ in range(iterations):
        updated = _means(points, valid, _nearest(points, centroids, distinct), centroids)
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids


def _nearest(points: Tensor, centroids: Tensor, distinct: Tensor) -> Tensor:
    return squared_distances(points, centroids).masked_fill(~distinct[:, None], torch.inf).argmin(dim=2)  # (C, N)


def _means(points: Tensor, valid: Tensor, assignment: Tensor, fallback: Tensor) -> Tensor:
    membership = torch.nn.functional.one_hot(assignment, fallback.shape[1]).to(points.dtype) * valid[:, :, None]
    sizes = membership.sum(dim=1)[:, :, None]  # (C, K, 1)
    sums = torch.bmm(membership.transpose(1, 2), points)
    return torch.where(sizes > 0, sums / sizes.clamp_min(1), fallback)


def _lloyd_faiss(points: Tensor, valid: Tensor, seeds: Tensor, distinct: Tensor, iterations: int) -> tuple[Tensor, str]:
    faiss = require_extra("faiss", extra="cpu", needed_for="k-means with backend='faiss'")
    on_gpu = points.device.type == "cuda" and _gpu_count(faiss) > 0
    centroids = seeds.clone()
    for label in range(len(points)):
        chosen = points[label, valid[label]].cpu().numpy()
        start = seeds[label, distinct[label]].cpu().numpy()
        # FAISS refuses fewer points than centroids; there the seeds are the points themselves.
        if len(chosen) <= len(start):
            continue
        solver = faiss.Kmeans(
            chosen.shape[1],
            len(start),
            niter=iterations,
            gpu=on_gpu,
            # Its defaults would subsample large classes and warn about small ones.
            min_points_per_centroid=1,
            max_points_per_centroid=len(chosen),
        )
        solver.train(chosen, init_centroids=start)
        centroids[label, : len(start)] = torch.from_numpy(solver.centroids).to(points.device)
    # FAISS fills an empty cluster with a shifted copy of a large one, which may be the last thing it did.
    centroids = _lloyd_torch(points, valid, centroids, distinct, iterations=1)
    return centroids, "faiss-gpu" if on_gpu else "faiss-cpu"


def _gpu_count(faiss: types.ModuleType) -> int:
    # A CPU build has no such function; asking it for a GPU would silently run on the CPU.
    return int(faiss.get_num_gpus()) if hasattr(faiss, "get_num_gpus") else 0


def _settle(points: Tensor, valid: Tensor, centroids: Tensor, distinct: Tensor, backend: str) -> Clusters:
    """Final assignment; empty clusters go to the end and are marked invalid."""
    assignment = _nearest(points, centroids, distinct)
    sizes = torch.zeros(centroids.shape[:2], dtype=torch.long, device=points.device)
    sizes.scatter_add_(1, assignment, valid.long())
    used, order = (sizes > 0).sort(dim=1, descending=True, stable=True)
    rank = order.argsort(dim=1)  # place of each old cluster in the new order
    assignment = rank.gather(1, assignment).masked_fill(~valid, -1)
    centroids = centroids.gather(1, order[:, :, None].expand_as(centroids)) * used[:, :, None]
    own = centroids.gather(1, assignment.clamp_min(0)[:, :, None].expand_as(points))
    objective = ((points - own).square().sum(2) * valid).sum(1)
    return Clusters(centroids, used, assignment, objective, backend)
