"""Nearest-prototype assignment of the regions in the memory."""

from __future__ import annotations

from collections.abc import Container
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory


@dataclass(frozen=True)
class RememberedRegion:
    """A region of the memory with its similarity to a prototype.

    Attributes:
        slot: index in the queue of its class.
        image_id: the image it came from, as the memory keeps it.
        step: training step it came at.
        cosine: to the prototype, in [-1, 1].
    """

    slot: int
    image_id: str
    step: int
    cosine: float


@dataclass(frozen=True)
class PrototypeRow:
    """A prototype with its regions: those of its class to which no other prototype is nearer.

    Attributes:
        label: class index, `num_classes` for the background.
        number: which prototype of the class, from 0.
        regions: how many regions of the memory.
        images: how many different images they come from.
        mean_cosine: of these regions to the prototype; NaN without any.
        nearest: the nearest of them, from different images, nearest first.
    """

    label: int
    number: int
    regions: int
    images: int
    mean_cosine: float
    nearest: tuple[RememberedRegion, ...]


@torch.no_grad()
def nearest_regions(
    memory: RegionMemory,
    prototypes: Tensor,
    valid: Tensor,
    labels: Tensor,
    *,
    regions: int = 6,
    known: Container[str] | None = None,
) -> list[PrototypeRow]:
    """Assigns each region of the memory to the nearest prototype of its class.

    Args:
        memory: the regions.
        prototypes: `(Q, D)`, of any norm but 0 where valid.
        valid: `(Q,)` boolean.
        labels: `(Q,)` int64, class of each prototype.
        regions: most regions in `nearest`.
        known: image ids that may be in `nearest`; default all. The others still count as regions.

    Returns:
        A row for every valid prototype, in the order of `prototypes`.

    Raises:
        ArgumentError: if `regions` is below 1, or prototypes and memory have different channels.

    Example:
        >>> memory = RegionMemory(num_classes=1, slots=3, dim=2)
        >>> _ = memory.enqueue(torch.eye(2), torch.zeros(2, dtype=torch.long), ["left", "right"], step=0)
        >>> row = nearest_regions(memory, torch.eye(2), torch.tensor([True, False]), torch.tensor([0, 0]))[0]
        >>> row.regions, [region.image_id for region in row.nearest]
        (2, ['left', 'right'])
    """
    if regions < 1:
        raise ArgumentError("regions", regions, "give at least 1")
    if prototypes.shape[1] != memory.dim:
        raise ArgumentError("prototypes", tuple(prototypes.shape), f"give (Q, {memory.dim}), channels as in the memory")
    rows: list[PrototypeRow] = []
    for label in sorted(set(labels.tolist())):
        own = torch.nonzero(labels == label)[:, 0]
        used = torch.nonzero(valid[own])[:, 0].tolist()
        rows.extend(_rows_of_class(memory, label, prototypes[own].float(), used, regions, known))
    return rows


def _rows_of_class(
    memory: RegionMemory, label: int, prototypes: Tensor, used: list[int], regions: int, known: Container[str] | None
) -> list[PrototypeRow]:
    slots = torch.nonzero(memory.valid[label])[:, 0]
    ids = [memory.image_id(label, slot) for slot in slots.tolist()]
    embeddings = memory.embeddings[label, slots].float()
    cosines = embeddings @ F.normalize(prototypes[used], dim=1).T.to(embeddings)  # (n, k)
    rows = []
    for column, number in enumerate(used):
        member = torch.nonzero(cosines.argmax(dim=1) == column)[:, 0]
        order = member[cosines[member, column].argsort(descending=True, stable=True)].tolist()
        first: dict[str, int] = {}  # of each image the nearest region, nearest first
        for index in order:
            if known is None or ids[index] in known:
                first.setdefault(ids[index], index)
        nearest = [
            RememberedRegion(
                int(slots[index]), ids[index], int(memory.steps[label, slots[index]]), float(cosines[index, column])
            )
            for index in list(first.values())[:regions]
        ]
        images = len({ids[index] for index in order})
        mean = float(cosines[member, column].mean())
        rows.append(PrototypeRow(label, number, len(order), images, mean, tuple(nearest)))
    return rows
