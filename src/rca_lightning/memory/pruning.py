"""Leave out prototypes that the classifier does not take for their class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.memory.clusters import Clusters, clustered, settle


@torch.no_grad()
def drop_unlike(clusters: Clusters, points: Tensor, scores: Tensor, below: float) -> Clusters:
    """Drop prototypes that score low for their own class; the best one of a class always stays.

    Regions of a dropped prototype belong to none (-1): they are the likely mistakes, and would
    blur the cluster they were moved to.

    Args:
        clusters: of `C` classes and `K` prototypes.
        points: `(C, N, D)` or `(N, D)`, the points that were clustered.
        scores: `(C, K)`, of each prototype for its own class, as probability or as margin; unused where not valid.
        below: the least score that stays.

    Returns:
        The clusters, valid ones first and in their order.

    Raises:
        ArgumentError: if `scores` has another shape or is not finite for a valid prototype.
    """
    if scores.shape != clusters.valid.shape:
        raise ArgumentError("scores", tuple(scores.shape), f"give {tuple(clusters.valid.shape)}, one a prototype")
    if not torch.isfinite(scores[clusters.valid]).all():
        raise ArgumentError("scores", "non-finite", "valid prototypes need finite scores")
    points, _ = clustered(clusters, points)
    scores = scores.masked_fill(~clusters.valid, -torch.inf)
    best = F.one_hot(scores.argmax(dim=1), scores.shape[1]).bool()
    kept = clusters.valid & ((scores >= below) | best)
    own = clusters.assignment.clamp_min(0)
    served = (clusters.assignment >= 0) & kept.gather(1, own)
    return settle(
        points, served, clusters.centroids, kept, backend=clusters.backend, assignment=own, unit=clusters.unit
    )
