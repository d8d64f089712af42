"""Semantic contrast: InfoNCE of regions against the memory (RCA, section 3.3).

A memory that is large, on the host or in half precision is read block by block. The loss of a region is one number, so
its gradient is one vector: both are computed in the same pass, and no block is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError

Positives = Literal["all", "prototypes", "hardest"]
BLOCK_BYTES = 16 * 2**20
"""Of the float32 slots of a block, or of their products with the regions where these are larger."""

_AT_ONCE = 2**26  # bytes of the products of regions and slots that a GPU may hold


@check_arguments
def region_contrast_loss(
    embeddings: Tensor,
    labels: Tensor,
    absent: Tensor,
    memory: Tensor,
    valid: Tensor,
    temperature: float = 0.1,
    *,
    positives: Positives = "all",
    prototypes: Tensor | None = None,
    prototypes_valid: Tensor | None = None,
) -> Tensor:
    r"""InfoNCE of each region against every valid slot of the memory: equation (5) of docs/method.md.

    For a region `f` of class `l`, with positives `m+` and negatives `m-` (valid slots of classes absent
    from its image):
    `mean over m+ of -log( exp(f m+ / t) / (exp(f m+ / t) + sum over m- of exp(f m- / t)) )`,
    averaged over the regions that have both a positive and a negative. The positives are

    - "all": the valid slots of `l` (the paper);
    - "prototypes": the valid prototypes of `l`, fewer and less noisy than the slots they are the centres of;
      before the first clustering there are none, so there is no loss;
    - "hardest": the one valid slot of `l` that is least similar to `f`, the first of equals.

    Args:
        embeddings: `(R, D)`; normalised here.
        labels: `(R,)` class of each region.
        absent: `(R, C)` boolean; classes absent from the region's image. A class that is in the
            image is no negative, also where another region of it is meant.
        memory: `(C, N, D)` unit vectors; no gradient flows into it. One on another device, in half precision,
            on a processor, or with many products is read in blocks of at most 64 MiB, with float32 products, the same
            result up to rounding, and no second derivative.
        valid: `(C, N)` boolean, slots in use.
        temperature: `t`, above 0.
        positives: what a region is pulled to.
        prototypes: `(C, K, D)`, normalised here, no gradient; used by "prototypes" only. Of fewer than `C` classes
            the last ones have none.
        prototypes_valid: boolean, shaped like `prototypes` without `D`; all are valid if `None`.

    Returns:
        A scalar; 0, still tied to `embeddings`, when no region has both a positive and a negative.

    Raises:
        ArgumentError: if `positives` is unknown, or is "prototypes" and they are missing or have another shape.

    Example:
        >>> memory = torch.eye(2)[:, None]  # two classes, one slot each
        >>> arguments = torch.tensor([[1.0, 0.0]]), torch.tensor([0]), torch.tensor([[False, True]])
        >>> loss = region_contrast_loss(*arguments, memory, torch.ones(2, 1, dtype=torch.bool), temperature=1.0)
        >>> round(float(loss), 4)  # log(1 + exp(0 - 1))
        0.3133
    """
    found = contrast_by_region(
        embeddings,
        labels,
        absent,
        memory,
        valid,
        temperature,
        positives=positives,
        prototypes=prototypes,
        prototypes_valid=prototypes_valid,
    )
    return _mean(*found)


def _mean(per_region: Tensor, usable: Tensor) -> Tensor:
    return per_region.sum() / usable.sum().clamp_min(1)


@check_arguments
def contrast_by_region(
    embeddings: Tensor,
    labels: Tensor,
    absent: Tensor,
    memory: Tensor,
    valid: Tensor,
    temperature: float = 0.1,
    *,
    positives: Positives = "all",
    prototypes: Tensor | None = None,
    prototypes_valid: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """InfoNCE of each region by itself; `region_contrast_loss` is the mean.

    Returns:
        `(R,)`, 0 and still tied to `embeddings` for a region without a positive or a negative, and `(R,)` boolean,
        false there.
    """
    queries = F.normalize(embeddings.float(), dim=1)
    valid = valid.to(queries.device)
    attract = _loss_by_blocks if _reads_by_blocks(queries, memory) else _loss_at_once
    near = _to_prototypes(queries, labels, prototypes, prototypes_valid) if positives == "prototypes" else None
    with torch.autocast(queries.device.type, enabled=False):  # half precision is coarse once divided by `t`
        per_region, usable = attract(queries, labels, absent, memory.detach(), valid, temperature, positives, near)
    per_region = torch.where(usable, per_region, embeddings.float().sum(dim=1) * 0)
    return per_region, usable


def _reads_by_blocks(queries: Tensor, memory: Tensor) -> bool:
    kept_elsewhere = memory.device != queries.device or memory.dtype != torch.float32
    # A processor multiplies a block twice while it has it in its cache. A GPU is faster at once, while there is room.
    large = queries.device.type == "cpu" or len(queries) * memory.shape[:2].numel() * 4 > _AT_ONCE
    return kept_elsewhere or large


def _loss_at_once(
    queries: Tensor,
    labels: Tensor,
    absent: Tensor,
    memory: Tensor,
    valid: Tensor,
    temperature: float,
    positives: Positives,
    near: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The equation: loss of each region `(R,)`, and whether it has a positive and a negative."""
    similarity = torch.einsum("rd,cnd->rcn", queries, memory) / temperature
    is_negative = absent[:, :, None] & valid[None]  # (R, C, N)
    lowest = torch.finfo(similarity.dtype).min
    negatives = similarity.masked_fill(~is_negative, lowest).flatten(1).logsumexp(dim=1)  # (R,)
    if near is not None:
        attracting, is_positive = near[0] / temperature, near[1]  # (R, K)
    else:
        attracting = similarity[torch.arange(len(labels), device=labels.device), labels]  # (R, N)
        is_positive = valid[labels]  # (R, N)
    if positives == "hardest":
        hardest = attracting.masked_fill(~is_positive, torch.inf).argmin(dim=1, keepdim=True)  # (R, 1)
        attracting, is_positive = attracting.gather(1, hardest), is_positive.gather(1, hardest)
    usable = is_positive.any(dim=1) & is_negative.flatten(1).any(dim=1)
    return _mean_softplus(negatives, attracting, is_positive), usable


def _loss_by_blocks(
    queries: Tensor,
    labels: Tensor,
    absent: Tensor,
    memory: Tensor,
    valid: Tensor,
    temperature: float,
    positives: Positives,
    near: tuple[Tensor, Tensor] | None,
) -> tuple[Tensor, Tensor]:
    """The same, reading the memory block by block."""
    found = negative_logsumexp(queries, absent, memory, valid, temperature)
    usable = found.exists & (near[1] if near is not None else valid[labels]).any(dim=1)
    if positives == "all":
        loss = loss_over_all_positives(queries, labels, found, memory, valid, temperature)
        return with_precomputed_gradient(queries, *loss), usable
    negatives = with_precomputed_gradient(queries, found.logits, found.gradient)
    if near is not None:
        return _mean_softplus(negatives, near[0] / temperature, near[1]), usable
    hardest = (queries * hardest_slots(queries, labels, memory, valid)).sum(dim=1, keepdim=True) / temperature
    return _mean_softplus(negatives, hardest, torch.ones_like(hardest, dtype=torch.bool)), usable


def _mean_softplus(negatives: Tensor, attracting: Tensor, is_positive: Tensor) -> Tensor:
    # -log(e^p / (e^p + e^n)) = softplus(n - p), without overflow at small temperatures.
    per_slot = F.softplus(negatives[:, None] - attracting) * is_positive
    return per_slot.sum(dim=1) / is_positive.sum(dim=1).clamp_min(1)


def _to_prototypes(
    queries: Tensor, labels: Tensor, prototypes: Tensor | None, valid: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Cosine of queries `(R, D)` with the prototypes of their class `(R, K)`, and which of these are valid."""
    if prototypes is None:
        raise ArgumentError("prototypes", None, "give them, or positives='all' or 'hardest', which need none")
    if prototypes.ndim != 3 or not len(prototypes) or prototypes.shape[2] != queries.shape[1]:
        raise ArgumentError("prototypes", tuple(prototypes.shape), f"give (C, K, {queries.shape[1]})")
    if valid is None:
        valid = prototypes.new_ones(prototypes.shape[:2], dtype=torch.bool)
    if valid.shape != prototypes.shape[:2]:
        raise ArgumentError("prototypes_valid", tuple(valid.shape), f"give {tuple(prototypes.shape[:2])}")
    own = labels.clamp_max(len(prototypes) - 1)  # a class past the last row reads that row, masked
    candidates = F.normalize(prototypes.detach().float(), dim=2)[own]  # (R, K, D)
    with torch.autocast(queries.device.type, enabled=False):
        cosine = torch.einsum("rd,rkd->rk", queries, candidates)
    return cosine, valid[own] & (labels < len(prototypes))[:, None]


class RegionContrastLoss(nn.Module):
    """`region_contrast_loss` with its temperature and choice of positives.

    Args:
        temperature: `tau`, above 0. 0.1 is the usual value of supervised contrast; the lower it is, the more
            the hardest negatives decide.
        positives: "all" slots of the class, its "prototypes", or its "hardest" slot.
    """

    @check_arguments
    def __init__(self, temperature: float = 0.1, positives: Positives = "all") -> None:
        super().__init__()
        if temperature <= 0:
            raise ArgumentError("contrast_temperature", temperature, "give a number above 0")
        self.temperature = temperature
        self.positives: Positives = positives

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        absent: Tensor,
        memory: Tensor,
        valid: Tensor,
        prototypes: Tensor | None = None,
        prototypes_valid: Tensor | None = None,
    ) -> Tensor:
        """See `region_contrast_loss`."""
        found = self.by_region(embeddings, labels, absent, memory, valid, prototypes, prototypes_valid)
        return _mean(*found)

    def by_region(
        self,
        embeddings: Tensor,
        labels: Tensor,
        absent: Tensor,
        memory: Tensor,
        valid: Tensor,
        prototypes: Tensor | None = None,
        prototypes_valid: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See `contrast_by_region`."""
        return contrast_by_region(
            embeddings,
            labels,
            absent,
            memory,
            valid,
            self.temperature,
            positives=self.positives,
            prototypes=prototypes,
            prototypes_valid=prototypes_valid,
        )


@dataclass
class NegativeTerm:
    """Log-sum-exp of regions over the negatives of a memory, with its gradient.

    Attributes:
        exists: `(R,)` boolean, whether a region has a negative.
        logits: `(R,)`, logarithm of the sum of `exp(f m- / t)`; the lowest number where there is none.
        gradient: `(R, D)` of the logits.
    """

    exists: Tensor
    logits: Tensor
    gradient: Tensor


class PrecomputedGradient(torch.autograd.Function):
    """Returns numbers `(R,)` of queries `(R, D)` whose gradient `(R, D)` is known; has no second derivative."""

    @staticmethod
    def forward(ctx: Any, queries: Tensor, numbers: Tensor, gradient: Tensor) -> Tensor:
        """The numbers, in the graph of the queries."""
        ctx.save_for_backward(gradient)
        return numbers.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, outer: Tensor) -> tuple[Tensor, None, None]:
        """Chain rule."""
        (gradient,) = ctx.saved_tensors
        return outer[:, None] * gradient, None, None


def with_precomputed_gradient(queries: Tensor, numbers: Tensor, gradient: Tensor) -> Tensor:
    """Puts `numbers` `(R,)` into the graph of `queries` `(R, D)` with a known gradient `(R, D)`."""
    found: Tensor = PrecomputedGradient.apply(queries, numbers, gradient)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def negative_logsumexp(
    queries: Tensor, absent: Tensor, memory: Tensor, valid: Tensor, temperature: float
) -> NegativeTerm:
    """Log-sum-exp over the negatives in one pass over the memory, and its gradient.

    Args:
        queries: `(R, D)` float32.
        absent: `(R, C)` boolean.
        memory: `(C, N, D)` on any device.
        valid: `(C, N)` boolean, on the device of the queries.
        temperature: above 0.
    """
    lowest = torch.finfo(queries.dtype).min
    peak, total, mean = queries.new_full((len(queries),), lowest), queries.new_zeros(len(queries)), queries * 0
    used = valid.flatten()
    for rows, block in _blocks(memory.flatten(0, 1), queries):
        label = torch.arange(rows.start, rows.stop, device=queries.device) // memory.shape[1]
        negative = absent[:, label] & used[rows]  # (R, rows)
        logits = (queries @ block.T / temperature).masked_fill_(~negative, lowest)
        above = torch.maximum(peak, logits.amax(dim=1))
        shares = (logits - above[:, None]).exp_() * negative
        shrink = (peak - above).exp()
        peak, total = above, total * shrink + shares.sum(dim=1)
        mean = mean * shrink[:, None] + shares @ block
    # The largest negative adds 1, so the sum is 0 or at least 1.
    exists = total > 0
    gradient = mean / total.clamp_min(1)[:, None] / temperature
    return NegativeTerm(exists, torch.where(exists, peak + total.clamp_min(1).log(), lowest), gradient)


@torch.no_grad()
def loss_over_all_positives(
    queries: Tensor, labels: Tensor, negatives: NegativeTerm, memory: Tensor, valid: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Loss of each region, the mean over the slots of its class, and its gradient.

    Returns:
        `(R,)` and `(R, D)`; 0 where a class has no slot.
    """
    loss, pushed, pulled = torch.zeros_like(negatives.logits), torch.zeros_like(negatives.logits), queries * 0
    for mine, label, rows, block in _own_blocks(queries, labels, memory):
        used = valid[label, rows]
        gap = negatives.logits[mine, None] - queries[mine] @ block.T / temperature  # (r, rows)
        share = gap.sigmoid() * used
        loss[mine] += (F.softplus(gap) * used).sum(dim=1)
        pushed[mine] += share.sum(dim=1)
        pulled[mine] += share @ block
    count = valid.sum(dim=1)[labels].clamp_min(1)
    gradient = (pushed[:, None] * negatives.gradient - pulled / temperature) / count[:, None]
    return loss / count, gradient


@torch.no_grad()
def hardest_slots(queries: Tensor, labels: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
    """The valid slot `(R, D)` of its class that is least similar to each region, float32; 0 where there is none."""
    least, found = queries.new_full((len(queries),), torch.inf), queries * 0
    for mine, label, rows, block in _own_blocks(queries, labels, memory):
        similarity = (queries[mine] @ block.T).masked_fill(~valid[label, rows], torch.inf)  # (r, rows)
        lowest, index = similarity.min(dim=1)
        lower = lowest < least[mine]
        found[mine] = torch.where(lower[:, None], block[index], found[mine])
        least[mine] = torch.where(lower, lowest, least[mine])
    return found


def _own_blocks(queries: Tensor, labels: Tensor, memory: Tensor) -> Iterator[tuple[Tensor, int, slice, Tensor]]:
    """For each class with regions: their index `(r,)`, the class, and blocks of its slots."""
    for label in sorted(set(labels.tolist())):
        mine = torch.nonzero(labels == label)[:, 0]
        for rows, block in _blocks(memory[label], queries):
            yield mine, label, rows, block


def _blocks(slots: Tensor, queries: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slots `(M, D)` as float32 on the device of the queries, a bounded number at a time."""
    step = max(1, BLOCK_BYTES // (4 * max(slots.shape[1], len(queries))))
    for first in range(0, len(slots), step):
        part = slots[first : first + step]
        yield slice(first, first + len(part)), part.to(queries.device, non_blocking=True).float()
