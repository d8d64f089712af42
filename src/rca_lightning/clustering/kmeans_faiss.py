"""Lloyd's iterations by FAISS, one class after another or one a thread. The only file that imports FAISS."""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.clustering.kmeans import lloyd
from rca_lightning.errors import require_extra

Array = npt.NDArray[np.float32]


def lloyd_by_faiss(
    points: Tensor, valid: Tensor, seeds: Tensor, usable: Tensor, iterations: int, unit: bool
) -> tuple[Tensor, str]:
    """k-means from its seeds, on the GPU where the points and a GPU build are.

    Args:
        points: `(C, N, D)` float32.
        valid: `(C, N)` boolean; the other points do not count.
        seeds: `(C, K, D)`, where each class starts from.
        usable: `(C, K)` boolean, the seeds that exist.
        iterations: at most.
        unit: whether centroids are kept at unit length.

    Returns:
        Centroids `(C, K, D)`, and where it ran: "faiss-gpu" or "faiss-cpu".

    Raises:
        MissingExtraError: if FAISS is not installed.
    """
    faiss = require_extra("faiss", extra="cpu", needed_for="k-means with backend='faiss'")
    to_gpu = _to_gpu(faiss, points.device)
    # PyTorch works in this thread only: in others each would start threads of its own.
    full = valid.all(dim=1).tolist()
    labels = range(len(points))
    own = [(points[c] if full[c] else points[c, valid[c]]).cpu().numpy() for c in labels]
    starts = [seeds[c, usable[c]].cpu().numpy() for c in labels]

    def solve(points: Array, start: Array) -> Array:
        # FAISS refuses fewer points than centroids; there the seeds are the points themselves.
        if len(points) <= len(start):
            return start
        solver = faiss.Kmeans(
            points.shape[1],
            len(start),
            niter=iterations,
            spherical=unit,
            # Its defaults would subsample large classes and warn about small ones.
            min_points_per_centroid=1,
            max_points_per_centroid=len(points),
        )
        if to_gpu is not None:
            solver.index = to_gpu(solver.index)
        solver.train(points, init_centroids=start)
        centroids: Array = solver.centroids
        return centroids

    centroids = seeds.clone()
    solved = map(solve, own, starts) if to_gpu else _in_threads(faiss, solve, own, starts)
    for label, moved in zip(labels, solved, strict=True):
        centroids[label, usable[label]] = torch.from_numpy(moved).to(points.device)
    # FAISS fills an empty cluster with a shifted copy of a large one, which may be the last thing it did.
    centroids = lloyd(points, valid, centroids, usable, iterations=1, unit=unit)
    return centroids, "faiss-gpu" if to_gpu else "faiss-cpu"


def _in_threads(faiss: types.ModuleType, solve: Callable[[Array, Array], Array], *each: list[Array]) -> Iterator[Array]:
    """The classes side by side, each in one thread: FAISS' own threads take longer to meet than to multiply."""
    threads = max(1, min(torch.get_num_threads(), len(each[0])))
    with ThreadPoolExecutor(threads, initializer=faiss.omp_set_num_threads, initargs=(1,)) as pool:
        yield from pool.map(solve, *each)


def has_gpu_build() -> bool:
    """Whether the FAISS that is installed has its GPU part and sees a GPU."""
    return _sees_gpu(require_extra("faiss", extra="gpu", needed_for="k-means with backend='faiss'"))


def _sees_gpu(faiss: Any) -> bool:
    # A CPU build has no such function; asking it for a GPU would silently run on the CPU.
    return hasattr(faiss, "get_num_gpus") and bool(faiss.get_num_gpus())


def _to_gpu(faiss: types.ModuleType, device: torch.device) -> Callable[[Any], Any] | None:
    """Moves an index to the GPU of the points; `gpu=True` of FAISS would take all there are, which others use too."""
    if device.type != "cuda" or not _sees_gpu(faiss):
        return None
    resources = faiss.StandardGpuResources()
    resources.setTempMemory(_GPU_BYTES)
    return partial(faiss.index_cpu_to_gpu, resources, device.index or 0)


_GPU_BYTES = 2**26  # of scratch memory; FAISS would take a gigabyte and a half for products of a few megabytes
