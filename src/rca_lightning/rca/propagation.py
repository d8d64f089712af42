"""Propagation of maps inside an image: each cell reads the cells with like embeddings."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError

PropagationAffinity = Literal["cosine", "attention", "keys"]

BLOCK_BYTES = 2**26
"""Of the affinities of a block of cells, in float32; the matrix of all cells squared is never made."""


def check_propagation(power: float, steps: int) -> None:
    """Refuses a power of which no weights can be made, and a negative number of steps.

    Raises:
        ArgumentError: for a power that is not above 0 and finite, or steps below 0.
    """
    if not 0 < power < float("inf"):
        raise ArgumentError("propagation_power", power, "give a number above 0, such as 2")
    if steps < 0:
        raise ArgumentError("propagation_steps", steps, "give 0 (no propagation) or more")


@torch.no_grad()
def propagate(
    maps: Tensor, embeddings: Tensor, *, power: float = 2.0, steps: int = 1, affinity: Tensor | None = None
) -> Tensor:
    """Propagates maps over all cells of their image, `steps` times: `M' = A M`.

    `A_ij` is proportional to `max(cos(e_i, e_j), 0)^power`, and the rows of `A` sum to 1, so a map stays between its
    least and its greatest value. Prototypes bring the context of the dataset to a cell; this brings that of its image,
    over any distance. This is equation (10) of docs/method.md.

    A cell whose embedding is 0 is like no other and keeps its value. A block of cells is computed at a time
    (`BLOCK_BYTES`), in float32.

    Args:
        maps: `(B, K, H, W)`, finite.
        embeddings: `(B, D, H, W)`, of any length.
        power: above 0. The greater, the more alike cells must be.
        steps: 0 gives the maps back.
        affinity: `(B, HW, HW)`, not negative, takes the place of the cosines and of `power`, as the attention between
            the patches of a transformer; its rows need not sum to 1.

    Returns:
        `(B, K, H, W)` float32.

    Raises:
        ArgumentError: for a number out of its range, or embeddings or an affinity that do not fit the maps.

    Example:
        >>> embeddings = torch.tensor([[1.0, 1.0, 0.0], [0.0, 0.0, 1.0]])[None, :, None]  # (1, 2, 1, 3)
        >>> propagate(torch.tensor([[[[1.0, 0.0, 0.25]]]]), embeddings)
        tensor([[[[0.5000, 0.5000, 0.2500]]]])
    """
    check_propagation(power, steps)
    batch, count, height, width = maps.shape
    cells = height * width
    if affinity is None and (embeddings.ndim != 4 or embeddings.shape[::2] + embeddings.shape[3:] != _layout(maps)):
        raise ArgumentError("embeddings", tuple(embeddings.shape), f"give ({batch}, D, {height}, {width})")
    if affinity is not None and affinity.shape != (batch, cells, cells):
        raise ArgumentError("affinity", tuple(affinity.shape), f"give {(batch, cells, cells)}, a row for each cell")
    values = maps.float().flatten(2).transpose(1, 2)  # (B, K, H, W) -> (B, HW, K)
    if values.numel() == 0 or steps == 0:
        return maps.float()
    with torch.autocast(maps.device.type, enabled=False):
        directions = F.normalize(embeddings.float().flatten(2), dim=1)  # (B, D, HW)
        for _ in range(steps):
            values = torch.cat([_rows(rows, values, directions, power, affinity) for rows in _blocks(batch, cells)], 1)
    return values.transpose(1, 2).reshape(batch, count, height, width)


@check_arguments
def propagate_by(
    kind: PropagationAffinity,
    maps: Tensor,
    embeddings: Tensor,
    relation: Tensor | None,
    *,
    power: float = 2.0,
    steps: int = 1,
) -> Tensor:
    """Propagates maps as `propagate` does, over cells that are alike by their embeddings or to a transformer.

    This is equation (10) of docs/method.md, with the `A` that is asked for.

    Args:
        kind: "cosine" of the embeddings, or of the "keys" of a transformer, or its "attention" between cells.
        maps: `(B, K, H, W)`.
        embeddings: `(B, D, H, W)`.
        relation: of "attention" and "keys", what `Backbone.maps_and_relation` gives.
        power: of the cosines.
        steps: see `propagate`.

    Raises:
        ArgumentError: see `propagate`; or without the relation that is asked for.
    """
    if kind == "cosine":
        return propagate(maps, embeddings, power=power, steps=steps)
    if relation is None:
        remedy = f"{kind!r} needs it; a network makes it while its backbone is in evaluation mode"
        raise ArgumentError("relation", None, remedy)
    if kind == "keys":
        return propagate(maps, relation, power=power, steps=steps)
    return propagate(maps, embeddings, power=power, steps=steps, affinity=as_affinity(relation))


def as_affinity(relation: Tensor) -> Tensor:
    """The affinity `(B, HW, HW)`, a row for each cell, of a map `(B, HW, H, W)` of rows."""
    return relation.flatten(2).transpose(1, 2)


def mirror_rows(relation: Tensor) -> Tensor:
    """The rows `(B, HW, H, W)` of an affinity for the mirror image: cells change place, in the rows too.

    Example:
        >>> mirror_rows(torch.tensor([[[[1.0, 2.0]], [[3.0, 4.0]]]]))  # of two cells, side by side
        tensor([[[[4., 3.]],
        <BLANKLINE>
                 [[2., 1.]]]])
    """
    batch, cells, height, width = relation.shape
    return relation.reshape(batch, height, width, height, width).flip(2, 4).reshape(batch, cells, height, width)


def _layout(maps: Tensor) -> torch.Size:
    return maps.shape[::2] + maps.shape[3:]  # (B, H, W)


def _blocks(batch: int, cells: int) -> list[slice]:
    step = max(1, BLOCK_BYTES // (4 * batch * cells))
    return [slice(first, min(first + step, cells)) for first in range(0, cells, step)]


def _rows(rows: slice, values: Tensor, directions: Tensor, power: float, affinity: Tensor | None) -> Tensor:
    """The propagated values `(B, n, K)` of the cells `rows`."""
    if affinity is None:
        weights = (directions[:, :, rows].transpose(1, 2) @ directions).clamp_(min=0)  # (B, n, HW)
        weights = weights.square_() if power == 2 else weights.pow_(power)
    else:
        weights = affinity[:, rows].float()
    total = weights.sum(dim=2, keepdim=True)
    return torch.where(total > 0, weights @ values / total.clamp_min(1e-12), values[:, rows])
