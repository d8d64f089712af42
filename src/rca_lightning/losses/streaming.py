"""InfoNCE against a memory that is read block by block: one on the host, or in half precision.

The loss of a region is one number, so its gradient is one vector: both are computed in the same pass and no block is
kept for the backward pass, where autograd would keep the whole memory on the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

BLOCK_BYTES = 16 * 2**20
"""Of the float32 slots of a block, or of their products with the regions where these are larger."""


@dataclass
class Contrasted:
    """Regions against the negatives of a memory.

    Attributes:
        exists: `(R,)` boolean, whether a region has a negative.
        logits: `(R,)`, logarithm of the sum of `exp(f m- / t)`; the lowest number where there is none.
        gradient: `(R, D)` of the logits.
    """

    exists: Tensor
    logits: Tensor
    gradient: Tensor


class WithGradient(torch.autograd.Function):
    """Numbers `(R,)` of queries `(R, D)` whose gradient `(R, D)` is known already; there is no second derivative."""

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


def in_graph(queries: Tensor, numbers: Tensor, gradient: Tensor) -> Tensor:
    """`numbers` `(R,)` as a function of `queries` `(R, D)` with that gradient `(R, D)`."""
    found: Tensor = WithGradient.apply(queries, numbers, gradient)  # type: ignore[no-untyped-call]
    return found


@torch.no_grad()
def against_negatives(queries: Tensor, absent: Tensor, memory: Tensor, valid: Tensor, temperature: float) -> Contrasted:
    """One pass over the memory: the running maximum, sum and weighted mean of a softmax over the negatives.

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
    return Contrasted(exists, torch.where(exists, peak + total.clamp_min(1).log(), lowest), gradient)


@torch.no_grad()
def attracted_by_all(
    queries: Tensor, labels: Tensor, negatives: Contrasted, memory: Tensor, valid: Tensor, temperature: float
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
