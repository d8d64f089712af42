"""Keep the places of clusters from one clustering to the next."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.clusters import Clusters


def in_order_of(clusters: Clusters, initial: Tensor, given: Tensor) -> Clusters:
    """Give each cluster the place of the earlier prototype it is most like.

    Pairs are matched greedily, highest cosine first. A class with `k` valid clusters uses places `0 .. k - 1`,
    so an earlier prototype beyond them cannot keep its place.

    Args:
        clusters: to be put in order.
        initial: `(C, K, D)`, the earlier prototypes.
        given: `(C, K)` boolean, which of them exist.
    """
    labels = torch.arange(len(initial), device=initial.device)
    likeness = torch.bmm(F.normalize(clusters.centroids, dim=2), F.normalize(initial, dim=2).transpose(1, 2))
    likeness = likeness.masked_fill(~given[:, None], _NEUTRAL)
    # Valid clusters among the first places, the others behind them: here validity comes first in both.
    likeness = likeness.masked_fill(clusters.valid[:, :, None] != clusters.valid[:, None, :], -torch.inf)
    order = torch.zeros_like(clusters.valid, dtype=torch.long)
    places = clusters.valid.shape[1]
    for _ in range(places):
        best = likeness.flatten(1).argmax(dim=1)  # (C, K, K) -> (C, K * K)
        cluster, place = best // places, best % places
        order[labels, place] = cluster
        likeness[labels, cluster] = _TAKEN
        likeness[labels, :, place] = _TAKEN
    return clusters.ordered(order)


_NEUTRAL = -2.0  # below every cosine: matched after all that have one
_TAKEN = -torch.inf
