"""How much the prototypes of a class differ, and how evenly they are used."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Squared distance from their mean, in unit vectors, that float32 leaves between copies.
_ROUNDING = 1e-10
# Eigenvalues of a float32 Gram matrix, as a share of the largest, below which they are rounding.
_NOISE = 1e-6


def within_class_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine between different prototypes of a class: 1 means copies, lower means they differ.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.

    Returns:
        `(C,)`; NaN for a class with fewer than two prototypes.
    """
    unit = _unit(prototypes, valid)
    counts = valid.sum(dim=1).float()
    # The sum over all pairs is the squared length of the sum; the k self-pairs of cosine 1 come off.
    pairs = unit.sum(dim=1).square().sum(dim=1) - counts
    mean = pairs / (counts * (counts - 1)).clamp_min(1)
    return mean.masked_fill(counts < 2, torch.nan)


def max_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Cosine of the two prototypes of a class that are most alike, `(C,)`; NaN with fewer than two.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.
    """
    unit = _unit(prototypes, valid)
    cosines = torch.bmm(unit, unit.transpose(1, 2))  # (C, K, K)
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    pair = valid[:, :, None] & valid[:, None, :] & ~itself
    return cosines.masked_fill(~pair, -torch.inf).amax(dim=(1, 2)).masked_fill(valid.sum(dim=1) < 2, torch.nan)


def between_class_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine between prototypes of different classes, a scalar; NaN with fewer than two classes in use.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.
    """
    unit = _unit(prototypes, valid)
    sums, counts = unit.sum(dim=1), valid.sum(dim=1).float()  # (C, D), (C,)
    pairs = sums.sum(dim=0).square().sum() - sums.square().sum()
    number = counts.sum().square() - counts.square().sum()
    return torch.where(number > 0, pairs / number.clamp_min(1), torch.full_like(pairs, torch.nan))


def effective_rank(prototypes: Tensor, valid: Tensor) -> Tensor:
    """In how many directions the prototypes of a class differ from their mean.

    The exponential of the entropy of the singular values, normalised to sum 1, of the unit prototypes after their
    mean is taken off (Roy and Vetterli, The effective rank, EUSIPCO 2007). It does not see how far they
    differ: copies with a little noise have full rank.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.

    Returns:
        `(C,)` on the CPU, in `[1, k - 1]` for `k` prototypes, 1 also for exact copies; NaN with fewer than two.
    """
    unit = _unit(prototypes, valid)
    counts = valid.sum(dim=1)
    mean = unit.sum(dim=1, keepdim=True) / counts.clamp_min(1)[:, None, None]
    centred = (unit - mean) * valid[:, :, None]
    # K x K instead of K x D; its eigenvalues are the squared singular values. Not every device decomposes.
    eigenvalues = torch.linalg.eigvalsh(torch.bmm(centred, centred.transpose(1, 2)).cpu().double())  # (C, K) ascending
    eigenvalues = eigenvalues * (eigenvalues > _NOISE * eigenvalues[:, -1:])
    singular = eigenvalues.sqrt()
    rank = _entropy(singular / singular.sum(dim=1, keepdim=True).clamp_min(1e-30)).exp().float()
    counts = counts.cpu()
    copies = eigenvalues.sum(dim=1) <= _ROUNDING * counts
    return rank.masked_fill(copies, 1.0).masked_fill(counts < 2, torch.nan)


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
    total = sizes.sum(dim=1)
    return _entropy(sizes / total.clamp_min(1)[:, None]).exp() * (total > 0)


def _unit(prototypes: Tensor, valid: Tensor) -> Tensor:
    return F.normalize(prototypes.float(), dim=2) * valid[:, :, None]


def _entropy(share: Tensor) -> Tensor:
    """Of each row `(C, K)`, in nats, `(C,)`."""
    parts: Tensor = torch.special.entr(share)
    return parts.sum(dim=1)
