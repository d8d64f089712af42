"""The remembered regions that each prototype stands for, nearest first."""

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
    """One slot of the memory, as a prototype sees it.

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
    """A prototype with the regions it stands for: those of its class to which no other prototype is nearer.

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
    """For each prototype the remembered regions that it stands for.

    Args:
        memory: where the regions are.
        prototypes: `(Q, D)`, of any length other than 0 where valid.
        valid: `(Q,)` boolean.
        labels: `(Q,)` int64, class of each prototype.
        regions: how many of the nearest to name for a prototype.
        known: image ids that may be named; all if `None`. The others still count as regions.

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
    nearest = cosines.argmax(dim=1) if used else None
    rows = []
    for column, number in enumerate(used):
        assert nearest is not None
        member = torch.nonzero(nearest == column)[:, 0]
        order = cosines[member, column].argsort(descending=True, stable=True)
        ordered = [
            RememberedRegion(int(slots[index]), ids[index], int(memory.steps[label, slots[index]]), float(cosine))
            for index, cosine in zip(member[order].tolist(), cosines[member[order], column], strict=True)
        ]
        rows.append(
            PrototypeRow(
                label=label,
                number=number,
                regions=len(ordered),
                images=len({region.image_id for region in ordered}),
                mean_cosine=float(cosines[member, column].mean()),
                nearest=_from_different_images(ordered, regions, known),
            )
        )
    return rows


def _from_different_images(
    ordered: list[RememberedRegion], count: int, known: Container[str] | None
) -> tuple[RememberedRegion, ...]:
    chosen: dict[str, RememberedRegion] = {}
    for region in ordered:
        if len(chosen) == count:
            break
        if known is None or region.image_id in known:
            chosen.setdefault(region.image_id, region)
    return tuple(chosen.values())
