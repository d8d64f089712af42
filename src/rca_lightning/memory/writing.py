"""How regions that arrive together are written into the queues of a memory, as if one after the other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

WriteRule = Literal["fifo", "ema_ring", "ema_nearest"]

_TIE = 1e-6  # above the rounding of a cosine, so that equal slots are equal on every device
_SHORTEST_BLEND = 1e-6  # a shorter sum of two unit vectors is their rounding error


@dataclass
class Arrivals:
    """Regions that arrive together, class after class.

    Attributes:
        values: `(R, D)` unit vectors.
        labels: `(R,)` int64, ascending.
        ids: `(R, ID_BYTES)` encoded images.
        place: `(R,)` int64, of each among the arrivals of its class, from 0.
    """

    values: Tensor
    labels: Tensor
    ids: Tensor
    place: Tensor

    @classmethod
    def grouped(cls, values: Tensor, labels: Tensor, ids: Tensor) -> Arrivals:
        """Group regions by class; those of one class stay in order."""
        order = torch.argsort(labels, stable=True)
        labels = labels[order]
        starts = torch.searchsorted(labels, labels, right=False)
        place = torch.arange(len(labels), device=labels.device) - starts
        return cls(values[order], labels, ids[order], place)

    def turns(self, together: int) -> list[Tensor]:
        """Indices split into turns with at most `together` arrivals of a class each, the earlier ones first."""
        turn = self.place // together
        sizes: list[int] = torch.bincount(turn).tolist()
        return list(torch.split(torch.argsort(turn, stable=True), sizes))


class NearestSlots:
    """The slots most similar to regions that arrive together, while these regions are being written.

    Args:
        embeddings: `(C, N, D)` unit vectors of the memory, of any precision, which may change; see `written`.
        arrivals: the `R` regions.
    """

    def __init__(self, embeddings: Tensor, arrivals: Arrivals) -> None:
        self._embeddings, self._values, self._labels = embeddings, arrivals.values, arrivals.labels
        self._cosine = arrivals.values.new_zeros(len(arrivals.labels), embeddings.shape[1])  # (R, N)
        self._latest = torch.zeros(len(embeddings), dtype=torch.long, device=embeddings.device)  # (C,)
        with torch.autocast(embeddings.device.type, enabled=False):
            # A product a class: copying the slots of every region, (R, N, D), would cost most of the time.
            for label in sorted(set(self._labels.tolist())):
                own = self._labels == label
                self._cosine[own] = self._values[own] @ embeddings[label].float().T

    def find(self, turn: Tensor) -> Tensor:
        """For the regions of index `turn` the slot of highest cosine, the first of those within 1e-6 of it.

        Where matrix products may round to TF32 (`torch.set_float32_matmul_precision`), slots about 1e-3 apart are
        equal too, and which of them it is depends on the regions that arrive together; all ranks still agree.
        """
        cosine = self._cosine[turn]
        # argmax of 0 and 1 gives the first 1.
        return (cosine >= cosine.amax(dim=1, keepdim=True) - _TIE).long().argmax(dim=1)

    def written(self, rows: Tensor, slots: Tensor) -> None:
        """Take notice of new values in `slots` of the classes `rows`, one slot a class."""
        self._latest[rows] = slots
        slots = self._latest[self._labels]  # (R,)
        index = torch.arange(len(slots), device=slots.device)
        own = self._embeddings[self._labels, slots].float()  # (R, D)
        self._cosine[index, slots] = (self._values * own).sum(dim=1)


def blend(old: Tensor, arriving: Tensor, ema: float) -> tuple[Tensor, Tensor]:
    """`normalise(ema * old + (1 - ema) * arriving)` where it has a direction.

    Args:
        old: `(R, D)` unit vectors.
        arriving: `(R, D)` unit vectors.
        ema: share of the old vector.

    Returns:
        `(R, D)`, and `(R,)` boolean, false where the two cancel out and `old` is kept.
    """
    mixed = ema * old + (1 - ema) * arriving
    length = mixed.norm(dim=1)
    directed = length > _SHORTEST_BLEND
    return torch.where(directed[:, None], mixed / length[:, None].clamp_min(_SHORTEST_BLEND), old), directed
