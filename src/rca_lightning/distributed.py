"""Collectives for tensors of unequal length."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather_uneven(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Concatenate each tensor over all ranks along its first dimension, in rank order.

    Tensors of one call share their length on a rank; ranks may differ, and a rank may have none. Every rank
    gets the same result, bit for bit. Outside a distributed run the tensors come back as they are.

    Args:
        tensors: each `(R, ...)`, same trailing shape on all ranks.

    Returns:
        The tensors, each `(sum of R over ranks, ...)`.
    """
    if not is_distributed():
        return tensors
    length = torch.tensor([len(tensors[0])], device=tensors[0].device)
    lengths = [torch.zeros_like(length) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, length)
    sizes = [int(size) for size in torch.cat(lengths)]
    return tuple(_gather_padded(tensor, sizes) for tensor in tensors)


def _gather_padded(tensor: Tensor, sizes: list[int]) -> Tensor:
    longest = max(sizes)
    if longest == 0:
        return tensor
    padded = tensor.new_zeros((longest, *tensor.shape[1:]))
    padded[: len(tensor)] = tensor
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded.contiguous())
    return torch.cat([part[:size] for part, size in zip(gathered, sizes, strict=True)])


def broadcast_from_first(*tensors: Tensor) -> None:
    """Overwrite tensors in place with those of rank 0; nothing to do outside a distributed run."""
    if is_distributed():
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def maximum_over_ranks(tensor: Tensor) -> None:
    """Overwrite a tensor in place with its elementwise maximum over all ranks; it has one shape on all of them."""
    if is_distributed():
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)


def gather_objects(value: Any) -> list[Any]:
    """What each rank gave, in rank order; pickled, so for what this program has made itself."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
