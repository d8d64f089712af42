"""How much the prototypes of a class differ, and how evenly they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def within_class_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine between different prototypes of a class: 1 means copies, lower means they differ.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.

    Returns:
        `(C,)`; NaN for a class with fewer than two prototypes.
    """
    unit = F.normalize(prototypes.float(), dim=2) * valid[:, :, None]
    counts = valid.sum(dim=1).float()
    # The sum over all pairs is the squared length of the sum; the k self-pairs of cosine 1 come off.
    pairs = unit.sum(dim=1).square().sum(dim=1) - counts
    mean = pairs / (counts * (counts - 1)).clamp_min(1)
    return torch.where(counts > 1, mean, torch.full_like(mean, torch.nan))


def between_class_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine between prototypes of different classes, a scalar; NaN with fewer than two classes in use.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.
    """
    unit = F.normalize(prototypes.float(), dim=2) * valid[:, :, None]
    sums, counts = unit.sum(dim=1), valid.sum(dim=1).float()  # (C, D), (C,)
    pairs = sums.sum(dim=0).square().sum() - sums.square().sum()
    number = counts.sum().square() - counts.square().sum()
    return torch.where(number > 0, pairs / number.clamp_min(1), torch.full_like(pairs, torch.nan))


def effective_prototypes(assignment: Tensor, num_clusters: int) -> Tensor:
    """Prototypes in effective use: the exponential of the entropy of cluster sizes, in `[1, K]`, 0 for no point.

    Args:
        assignment: `(C, N)` int64 cluster of each point, -1 for none.
        num_clusters: `K`.

    Returns:
        `(C,)`.
    """
    member = F.one_hot(assignment.clamp_min(0), num_clusters) * (assignment >= 0)[:, :, None]
    sizes = member.sum(dim=1).float()
    share = sizes / sizes.sum(dim=1, keepdim=True).clamp_min(1)
    entropy = -(share * share.clamp_min(1e-12).log()).sum(dim=1)
    return torch.where(sizes.sum(dim=1) > 0, entropy.exp(), torch.zeros_like(entropy))
