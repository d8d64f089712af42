"""How tightly the regions of a prototype lie around it, as a factor on its temperature."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.clustering.clusters import Clusters, clustered
from rca_lightning.errors import ArgumentError


@torch.no_grad()
def concentration(
    points: Tensor,
    clusters: Clusters,
    *,
    alpha: float = 10.0,
    fewest: int = 3,
    bounds: tuple[float, float] = (0.5, 2.0),
) -> Tensor:
    """Temperature of each prototype relative to the others (Prototypical Contrastive Learning, arXiv 2005.04966).

    `phi = sum of distances / (Z log(Z + alpha))` over the `Z` points of a prototype (section 3.3 there): tight and
    large clusters get a low temperature, so they are read only by what is very like them, wide and small
    ones a high one. One factor scales all `phi` of the data set so that the mean is 1 after clipping.

    Args:
        points: `(C, N, D)` or `(N, D)`, the points that were clustered.
        clusters: of these points.
        alpha: smooths small clusters.
        fewest: a cluster of fewer points has no spread to speak of (a single point: zero) and
            gets the mean of its class, or 1 where the class has no larger cluster.
        bounds: least and greatest factor, around 1.

    Returns:
        `(C, K)`, to multiply the attention temperature by; 1 where not valid.

    Raises:
        ArgumentError: if `bounds` do not enclose 1 or `alpha` is below 1.
    """
    return relative_spread(clusters, distance_sums(points, clusters), alpha=alpha, fewest=fewest, bounds=bounds)


@torch.no_grad()
def distance_sums(points: Tensor, clusters: Clusters) -> Tensor:
    """Sum of the distances of its points to each centroid, `(C, K)`.

    Args:
        points: `(C, N, D)` or `(N, D)`, the points that were clustered.
        clusters: of these points.
    """
    points, _ = clustered(clusters, points)
    own = clusters.assignment.clamp_min(0)
    distances = (points - clusters.centroids.gather(1, own[:, :, None].expand_as(points))).norm(dim=2)
    sums = torch.zeros_like(clusters.centroids[:, :, 0])
    return sums.scatter_add_(1, own, distances * (clusters.assignment >= 0))


@torch.no_grad()
def relative_spread(
    clusters: Clusters,
    spread: Tensor,
    *,
    alpha: float = 10.0,
    fewest: int = 3,
    bounds: tuple[float, float] = (0.5, 2.0),
) -> Tensor:
    """`concentration` from its `distance_sums` `(C, K)`, for points that are read a few classes at a time."""
    low, high = bounds
    if not 0 < low < 1 < high:
        raise ArgumentError("bounds", bounds, "give two positive numbers with 1 between them")
    if alpha < 1:
        raise ArgumentError("alpha", alpha, "give 1 or more: log(Z + alpha) must be positive")
    sizes = clusters.sizes
    phi = spread / (sizes * (sizes + alpha).log()).clamp_min(1e-12)
    known = clusters.valid & (sizes >= fewest)
    factors = torch.ones_like(phi)
    if bool((phi[known] > 0).any()):
        factors[known] = _to_mean_one(phi[known], low, high)
    known_in_class = known.sum(dim=1, keepdim=True)
    mean = (factors * known).sum(dim=1, keepdim=True) / known_in_class.clamp_min(1)
    mean = torch.where(known_in_class > 0, mean, torch.ones_like(mean))
    return torch.where(clusters.valid & ~known, mean, factors)


def _to_mean_one(phi: Tensor, low: float, high: float) -> Tensor:
    """Scale `phi` so that its mean after clipping is 1: the mean grows with the scale, so halve the interval."""
    positive = phi[phi > 0].double()
    least, greatest = low / positive.max(), high / positive.min()
    for _ in range(60):
        middle = (least * greatest).sqrt()
        if (phi.double() * middle).clamp(low, high).mean() < 1:
            least = middle
        else:
            greatest = middle
    return (phi.double() * least).clamp(low, high).to(phi.dtype)
