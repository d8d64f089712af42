"""Collectives of a distributed run, also for tensors of unequal length."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def is_distributed() -> bool:
    """Whether more than one process takes part."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def world_size_and_rank() -> tuple[int, int]:
    """The number of processes, and the rank of this one."""
    return (dist.get_world_size(), dist.get_rank()) if is_distributed() else (1, 0)


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
    sizes = torch.cat(lengths).tolist()
    if max(sizes) == 0:
        return tensors
    # All tensors in one collective, a row of bytes each: what a small collective costs is its start.
    parts = [_as_bytes(tensor) for tensor in tensors]
    gathered = _gather_padded(torch.cat(parts, dim=1), sizes)
    columns = torch.split(gathered, [part.shape[1] for part in parts], dim=1)
    return tuple(_from_bytes(rows, tensor) for rows, tensor in zip(columns, tensors, strict=True))


def _as_bytes(tensor: Tensor) -> Tensor:
    """`(R, ...)` as `(R, bytes of a row)` uint8."""
    # A copy in plain order, for a single row or column may have any stride and still count as contiguous.
    return _row_bytes(torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device).copy_(tensor))


def _from_bytes(rows: Tensor, like: Tensor) -> Tensor:
    tensor = torch.empty((len(rows), *like.shape[1:]), dtype=like.dtype, device=like.device)
    _row_bytes(tensor).copy_(rows)
    return tensor


def _row_bytes(tensor: Tensor) -> Tensor:
    """The bytes of a tensor in plain order, a view."""
    return tensor.view(-1).view(torch.uint8).view(len(tensor), math.prod(tensor.shape[1:]) * tensor.element_size())


def _gather_padded(rows: Tensor, sizes: list[int]) -> Tensor:
    padded = rows.new_zeros((max(sizes), rows.shape[1]))
    padded[: len(rows)] = rows
    gathered = [torch.empty_like(padded) for _ in sizes]
    dist.all_gather(gathered, padded)
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


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of a tensor over all ranks, without gradients; it has one shape on all of them."""
    total = tensor.detach().clone()
    if is_distributed():
        dist.all_reduce(total)
    return total


def stack_over_ranks(tensor: Tensor) -> Tensor:
    """What each rank gave, `(world size, ...)`, with gradients; it has one shape on all of them.

    Each rank gets the gradient of the sum of all losses. `DistributedDataParallel` then takes the mean over ranks, so
    parameters get the gradient of the mean loss. All ranks must run backward through it, or none.
    """
    stacked: Tensor = _Stack.apply(tensor)  # type: ignore[no-untyped-call]
    return stacked


class _Stack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        if not is_distributed():
            return tensor[None]
        gathered = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, tensor.contiguous())
        return torch.stack(gathered)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return sum_over_ranks(gradients[0])[world_size_and_rank()[1]]


def gather_objects(value: Any) -> list[Any]:
    """What each rank gave, in rank order; pickled, so for what this program has made itself."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
