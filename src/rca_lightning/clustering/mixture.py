"""A Gaussian mixture: points belong to several prototypes in part."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.kmeans import lloyd, nearest, squared_distances


def mixture(points: Tensor, valid: Tensor, means: Tensor, usable: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Expectation maximisation with mixing weights and one isotropic variance a class.

    A few steps of k-means come first, as a start from points would make the variance far too large. Started from
    the prototypes of the last epoch it follows the memory as an online mixture would.

    Args:
        points: `(C, N, D)`.
        valid: `(C, N)` boolean.
        means: `(C, K, D)`, the start.
        usable: `(C, K)` boolean.
        iterations: steps.

    Returns:
        Means `(C, K, D)` weighted by the responsibilities, and the most responsible component `(C, N)`.
    """
    means = lloyd(points, valid, means, usable, min(iterations, _START))
    distances = squared_distances(points, means)
    hard = nearest(points, means, usable)
    dimension = effective_dimension(points, valid, means, hard)
    shares = F.one_hot(hard, means.shape[1]).to(points.dtype) * valid[:, :, None]
    for _ in range(iterations):
        shares = _responsibilities(distances, shares, valid, usable, dimension)
        sizes = shares.sum(dim=1)[:, :, None]  # (C, K, 1)
        updated = torch.bmm(shares.transpose(1, 2), points) / sizes.clamp_min(_SMALLEST)
        means = torch.where(sizes > _SMALLEST, updated, means)
        distances = squared_distances(points, means)
    shares = _responsibilities(distances, shares, valid, usable, dimension)
    return means, shares.argmax(dim=2)


def _responsibilities(distances: Tensor, shares: Tensor, valid: Tensor, usable: Tensor, dimension: Tensor) -> Tensor:
    """Weights and variance from the last shares `(C, N, K)`, then the new shares under them."""
    count = valid.sum(dim=1).clamp_min(1)[:, None]  # (C, 1)
    weights = (shares.sum(dim=1) / count).clamp_min(_SMALLEST)  # (C, K)
    variance = (shares * distances).sum(dim=(1, 2))[:, None] / (count * dimension[:, None])
    # Without spread (every point a mean) the variance is zero; rounding of the distances is the least there is.
    scale = (distances * valid[:, :, None]).amax(dim=(1, 2))[:, None]
    variance = variance.clamp_min(_ROUNDING).maximum(_ROUNDING * scale)
    logits = weights.log()[:, None] - distances / (2 * variance[:, None])
    logits = logits.masked_fill(~usable[:, None], torch.finfo(logits.dtype).min)
    return logits.softmax(dim=2) * valid[:, :, None]


def effective_dimension(points: Tensor, valid: Tensor, means: Tensor, assignment: Tensor) -> Tensor:
    """Number `(C,)` of directions, in `[1, D]`, in which points really scatter about their mean.

    Region embeddings fill few of their D channels' directions. Taken as spread evenly over all D, the variance
    along those that count is far too small and every responsibility 0 or 1. This is the participation
    ratio `tr(S)^2 / tr(S^2)` of the covariance `S` of residuals, `D` for isotropic noise; the denominator is the mean
    squared product of different residuals, over at most 128 points a class.

    Args:
        points: `(C, N, D)`.
        valid: `(C, N)` boolean.
        means: `(C, K, D)`.
        assignment: `(C, N)`.
    """
    index, taken = _sample(valid)
    rows = points.gather(1, index[:, :, None].expand(-1, -1, points.shape[2]))  # (C, 128, D)
    own = means.gather(1, assignment.gather(1, index)[:, :, None].expand_as(rows))
    products = torch.bmm((rows - own) * taken[:, :, None], ((rows - own) * taken[:, :, None]).transpose(1, 2))
    trace = products.diagonal(dim1=1, dim2=2)  # (C, 128)
    number = taken.sum(dim=1).to(points.dtype)
    pairs = (products.square().sum(dim=(1, 2)) - trace.square().sum(dim=1)) / (number * (number - 1)).clamp_min(1)
    ratio = (trace.sum(dim=1) / number.clamp_min(1)).square() / pairs.clamp_min(torch.finfo(points.dtype).tiny)
    return ratio.clamp(1, points.shape[2])


def _sample(valid: Tensor) -> tuple[Tensor, Tensor]:
    """Up to 128 evenly spaced valid points of each class: index `(C, M)`, and which of them count `(C, M)`."""
    order = valid.sort(dim=1, descending=True, stable=True)[1]  # valid ones first
    count = valid.sum(dim=1, keepdim=True)
    size = min(_SAMPLE, valid.shape[1])
    step = torch.arange(size, device=valid.device)[None]
    place = torch.where(count > size, step * count // size, step)
    return order.gather(1, place), step < count


_START = 5
_SAMPLE = 128
_SMALLEST = 1e-6
_ROUNDING = 1e-6
