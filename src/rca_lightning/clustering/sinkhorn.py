"""Balanced clustering: every prototype gets about as many points as the others."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.clustering.kmeans import means


def balanced(
    points: Tensor, valid: Tensor, centroids: Tensor, usable: Tensor, iterations: int
) -> tuple[Tensor, Tensor]:
    """Spherical k-means with clusters of equal size, by optimal transport.

    As in SwAV (arXiv 2006.09882) and in the prototype view of segmentation (arXiv 2203.15102), but run to the end
    over the whole memory. A point may belong to another than its nearest prototype. Copies of one point
    cannot be told apart and go to the same prototype, which is then larger.

    Args:
        points: `(C, N, D)` of unit length.
        valid: `(C, N)` boolean.
        centroids: `(C, K, D)` of unit length, the start.
        usable: `(C, K)` boolean.
        iterations: assignments and updates at most.

    Returns:
        Centroids `(C, K, D)` of unit length, and the assignment `(C, N)` they are the means of.
    """
    assignment = torch.full_like(valid, -1, dtype=torch.long)
    factors = None
    for _ in range(max(iterations, 1)):
        scores = torch.bmm(points, centroids.transpose(1, 2))
        plan, factors = transport_plan(scores, valid, usable, start=factors)
        updated = plan.argmax(dim=2)
        if torch.equal(updated, assignment):
            break
        assignment = updated
        centroids = means(points, valid, assignment, centroids, unit=True)
    return centroids, assignment


def transport_plan(
    scores: Tensor,
    valid: Tensor,
    usable: Tensor,
    *,
    start: Tensor | None = None,
    epsilon: float = 0.05,
    rounds: int = 50,
) -> tuple[Tensor, Tensor]:
    """Sinkhorn-Knopp scaling of `exp(scores / epsilon)` to equal sums (Cuturi, arXiv 1306.0895).

    Args:
        scores: `(C, N, K)`, higher is better.
        valid: `(C, N)` boolean.
        usable: `(C, K)` boolean.
        start: `(C, K)` factors of the prototypes to go on from; scalings of similar scores need few rounds then.
        epsilon: strength of the entropy, in standard deviations of the scores within a point. Cosines of
            one class lie close together; a fixed epsilon would blur the plan so far that its maxima are unbalanced.
        rounds: scalings of both sides.

    Returns:
        The plan `(C, N, K)` float64: a valid point sums to 1, a usable prototype to about `points / prototypes`.
        Zero where not valid or not usable. And the factors of the prototypes `(C, K)`.
    """
    pair = valid[:, :, None] & usable[:, None]  # (C, N, K)
    scores = scores.double().masked_fill(~pair, 0)
    count = pair.sum(dim=2, keepdim=True).clamp_min(1)
    centred = (scores - scores.sum(dim=2, keepdim=True) / count).masked_fill(~pair, 0)
    spread = (centred.square().sum(dim=(1, 2)) / pair.sum(dim=(1, 2)).clamp_min(1)).sqrt().clamp_min(1e-9)
    exponent = (scores - scores.masked_fill(~pair, -torch.inf).amax(dim=2, keepdim=True)) / (
        epsilon * spread[:, None, None]
    )
    # The bound keeps every usable prototype reachable in float64.
    kernel = exponent.clamp_min(_LOWEST).exp().masked_fill(~pair, 0)
    share = valid.sum(dim=1, keepdim=True) / usable.sum(dim=1, keepdim=True).clamp_min(1)  # (C, 1)
    columns = usable.double() if start is None else start
    for _ in range(rounds):
        rows = valid / torch.bmm(kernel, columns[:, :, None])[:, :, 0].clamp_min(_TINY)  # (C, N)
        columns = usable * share / torch.bmm(kernel.transpose(1, 2), rows[:, :, None])[:, :, 0].clamp_min(_TINY)
    rows = valid / torch.bmm(kernel, columns[:, :, None])[:, :, 0].clamp_min(_TINY)
    return rows[:, :, None] * kernel * columns[:, None], columns


_LOWEST = -200.0
_TINY = 1e-280
