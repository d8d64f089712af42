"""k-means of many classes at once: greedy k-means++ seeds and Lloyd's iteration."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


class PerClassGenerator:
    """Uniform numbers for some of the classes: those they get when all classes draw together.

    So a memory that is clustered a few classes at a time starts from the seeds of one that is clustered whole. Drawn on
    the CPU: the same seed gives the same numbers on every device.

    Args:
        seed: of the generator.
        classes: how many draw together.
        first: the first of those that are wanted.
        wanted: how many of them; `None`: all from `first` on.
    """

    def __init__(self, seed: int, classes: int, first: int = 0, wanted: int | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._classes = classes
        self._rows = slice(first, None if wanted is None else first + wanted)

    def uniform(self, count: int) -> Tensor:
        """The next `count` numbers in `[0, 1)` of each wanted class, `(c, count)` float64."""
        return torch.rand(self._classes, count, generator=self._generator, dtype=torch.float64)[self._rows]


def squared_distances(points: Tensor, centroids: Tensor, lengths: Tensor | None = None) -> Tensor:
    """Squared distances `(C, N, K)` of points `(C, N, D)` to centroids `(C, K, D)`, never negative.

    `lengths` are `squared_lengths(points)` where these are known: they take longer than the products.
    """
    lengths = squared_lengths(points) if lengths is None else lengths
    # (C, K, D) x (C, D, N): a third faster than the other way round.
    distances: Tensor = torch.baddbmm(
        squared_lengths(centroids)[:, :, None], centroids, points.transpose(1, 2), alpha=-2
    )
    return distances.add_(lengths[:, None, :]).clamp_min_(0).transpose(1, 2)


def squared_lengths(points: Tensor) -> Tensor:
    """Squared lengths `(C, N)` of points `(C, N, D)`."""
    lengths: Tensor = torch.linalg.vector_norm(points, dim=2)
    return lengths.square()  # without a tensor of all squares


def greedy_seeds(points: Tensor, valid: Tensor, num_clusters: int, draws: PerClassGenerator) -> tuple[Tensor, Tensor]:
    """Greedy k-means++ seeding (Arthur and Vassilvitskii, SODA 2007).

    Each further centroid is the best of `2 + log K` candidates drawn with probability proportional to the
    squared distance to the centroids so far.

    Args:
        points: `(C, N, D)`.
        valid: `(C, N)` boolean.
        num_clusters: `K`.
        draws: of these classes.

    Returns:
        The centroids `(C, K, D)`, and `(C, K)` boolean which of them differ from all before: a class with
        fewer distinct points than `K` has fewer, and they come first.
    """
    trials = 2 + int(math.log(num_clusters))
    classes = torch.arange(len(points), device=points.device)
    first = _draw(valid.to(torch.float64), 1, draws)[:, 0]
    centroids, distinct = [points[classes, first]], [valid.any(dim=1)]
    lengths = squared_lengths(points)
    nearest = squared_distances(points, centroids[0][:, None], lengths)[:, :, 0] * valid  # (C, N)
    nearest = _without_copies(nearest, points, centroids[0])
    for _ in range(1, num_clusters):
        distinct.append((nearest > 0).any(dim=1))
        proposed = points[classes[:, None], _draw(nearest.double(), trials, draws)]  # (C, T, D)
        distances = torch.minimum(nearest[:, :, None], squared_distances(points, proposed, lengths) * valid[:, :, None])
        best = distances.sum(dim=1).argmin(dim=1)  # (C,)
        centroids.append(proposed[classes, best])
        nearest = _without_copies(distances[classes, :, best], points, centroids[-1])
    return torch.stack(centroids, dim=1), torch.stack(distinct, dim=1)


def _without_copies(distances: Tensor, points: Tensor, centroid: Tensor) -> Tensor:
    # Rounding leaves copies of a centroid (C, D) a little apart from it, enough to be drawn again.
    close = distances <= 1e-3 * centroid.square().sum(dim=1, keepdim=True)
    label, index = torch.nonzero(close, as_tuple=True)
    copy = (points[label, index] == centroid[label]).all(dim=1)
    return distances.index_put((label[copy], index[copy]), distances.new_zeros(()))


def _draw(weights: Tensor, count: int, draws: PerClassGenerator) -> Tensor:
    """Indices `(C, count)` drawn in proportion to weights `(C, N)`; index 0 where all weights are 0."""
    uniform = draws.uniform(count).to(weights.device)
    cumulative = weights.cumsum(dim=1)
    index = torch.searchsorted(cumulative, uniform * cumulative[:, -1:], right=True)
    return index.clamp_max(weights.shape[1] - 1) * (cumulative[:, -1:] > 0)


def lloyd(
    points: Tensor, valid: Tensor, centroids: Tensor, usable: Tensor, iterations: int, *, unit: bool = False
) -> Tensor:
    """Centroids `(C, K, D)` after at most `iterations` steps; fewer where nothing moves any more.

    Args:
        points: `(C, N, D)`; of unit length for `unit`.
        valid: `(C, N)` boolean.
        centroids: `(C, K, D)`, the start.
        usable: `(C, K)` boolean, centroids that points may go to.
        iterations: steps at most.
        unit: scale each mean to unit length (spherical k-means, Dhillon and Modha, 2001). Between unit vectors
            the nearest is the one of highest cosine, so the assignment is the same code.
    """
    for _ in range(iterations):
        updated = means(points, valid, nearest(points, centroids, usable), centroids, unit=unit)
        if torch.equal(updated, centroids):
            break
        centroids = updated
    return centroids


def nearest(points: Tensor, centroids: Tensor, usable: Tensor) -> Tensor:
    """Index `(C, N)` of the nearest usable centroid of each point."""
    # Without the squared length of the point, which is the same for each of its distances.
    lengths = centroids.square().sum(dim=2).masked_fill(~usable, torch.inf)[:, :, None]  # (C, K, 1)
    return torch.baddbmm(lengths, centroids, points.transpose(1, 2), alpha=-2).min(dim=1).indices


def means(points: Tensor, valid: Tensor, assignment: Tensor, fallback: Tensor, *, unit: bool = False) -> Tensor:
    """Mean `(C, K, D)` of the valid points assigned to each centroid, `fallback` where there is none.

    Args:
        points: `(C, N, D)`.
        valid: `(C, N)` boolean.
        assignment: `(C, N)`, 0 or more.
        fallback: `(C, K, D)`.
        unit: scale the means to unit length; a mean that is all but zero has no direction and falls back too.
    """
    sums, sizes = _sums(points, valid, assignment, fallback.shape[1])
    mean = sums / sizes.clamp_min(1)
    if unit:
        lengths = mean.norm(dim=2, keepdim=True)
        return torch.where(lengths > _SHORTEST, mean / lengths.clamp_min(_SHORTEST), fallback)
    return torch.where(sizes > 0, mean, fallback)


def _sums(points: Tensor, valid: Tensor, assignment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Sum `(C, K, D)` and number `(C, K, 1)` of the valid points of each cluster."""
    by = _sums_by_index if points.device.type == "cpu" else _sums_by_product
    return by(points, valid, assignment, count)


def _sums_by_index(points: Tensor, valid: Tensor, assignment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    shape = (len(points), count, points.shape[2])
    cluster = assignment + torch.arange(len(points))[:, None] * count  # (C, N), of all classes
    own = cluster[valid]
    sizes = torch.bincount(own, minlength=shape[0] * count).to(points.dtype).reshape(*shape[:2], 1)
    rows = points.flatten(0, 1) if len(own) == cluster.numel() else points[valid]
    return points.new_zeros(shape).flatten(0, 1).index_add_(0, own, rows).reshape(shape), sizes


def _sums_by_product(points: Tensor, valid: Tensor, assignment: Tensor, count: int) -> tuple[Tensor, Tensor]:
    # On a GPU the order of a sum by index would change from run to run, and products cost next to nothing.
    membership = F.one_hot(assignment, count).to(points.dtype) * valid[:, :, None]
    return torch.bmm(membership.transpose(1, 2), points), membership.sum(dim=1)[:, :, None]


_SHORTEST = 1e-6  # float32 leaves this much where opposite unit vectors cancel
