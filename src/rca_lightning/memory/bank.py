"""The region memory: one first-in-first-out queue of embeddings a class (RCA, section 3.3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.memory.provenance import ID_BYTES, decode_id, encode_ids


class RegionMemory:
    """Per class a FIFO of `slots` unit embeddings with the image and step each came from.

    Plain tensors, no parameters: nothing of it is in a graph or in a module's `state_dict`.

    Args:
        num_classes: queues `C` (foreground classes, and one more for the background where it is kept).
        slots: embeddings `N` a class.
        dim: channels `D`.

    Attributes:
        embeddings: `(C, N, D)` float32, unit length where valid, 0 elsewhere.
        counts: `(C,)` int64, valid slots; slots `0 .. count - 1` are the valid ones.
        cursors: `(C,)` int64, the slot the next embedding goes to.
        steps: `(C, N)` int64, training step of each slot, -1 where empty.
        refused: embeddings refused so far because they were not finite or (all but) zero.

    Example:
        >>> memory = RegionMemory(num_classes=2, slots=4, dim=3)
        >>> memory.enqueue(torch.ones(1, 3), torch.tensor([1]), ["photo"], step=0)
        1
        >>> memory.counts.tolist(), memory.image_id(1, 0)
        ([0, 1], 'photo')
    """

    def __init__(self, num_classes: int, slots: int, dim: int) -> None:
        for name, value in (("num_classes", num_classes), ("slots", slots), ("dim", dim)):
            if value < 1:
                raise ArgumentError(name, value, "give at least 1")
        self.embeddings = torch.zeros(num_classes, slots, dim)
        self.counts = torch.zeros(num_classes, dtype=torch.long)
        self.cursors = torch.zeros(num_classes, dtype=torch.long)
        self.steps = torch.full((num_classes, slots), -1, dtype=torch.long)
        self.ids = torch.zeros(num_classes, slots, ID_BYTES, dtype=torch.uint8)
        self.refused = 0

    @property
    def num_classes(self) -> int:
        """Queues `C`."""
        return self.embeddings.shape[0]

    @property
    def slots(self) -> int:
        """Embeddings `N` a class."""
        return self.embeddings.shape[1]

    @property
    def dim(self) -> int:
        """Channels `D`."""
        return self.embeddings.shape[2]

    @property
    def valid(self) -> Tensor:
        """`(C, N)` boolean, slots in use."""
        return torch.arange(self.slots, device=self.counts.device)[None] < self.counts[:, None]

    def to(self, device: torch.device | str) -> RegionMemory:
        """Move every tensor; returns itself."""
        for name in _TENSORS:
            setattr(self, name, getattr(self, name).to(device))
        return self

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, image_ids: Sequence[str] | Tensor, step: int) -> int:
        """Write regions, oldest first, over the oldest of their class.

        Embeddings are scaled to unit length. One that is shorter than 1e-12 or not finite is refused and
        counted in `refused`: it has no direction.

        Args:
            embeddings: `(R, D)`.
            labels: `(R,)` int64 in `[0, C)`.
            image_ids: the image of each region, as `R` strings or encoded by `encode_ids` `(R, ID_BYTES)`.
            step: training step.

        Returns:
            How many were accepted.

        Raises:
            ArgumentError: if lengths differ or a label is out of range.
        """
        encoded = image_ids if isinstance(image_ids, Tensor) else encode_ids(image_ids)
        self._check(embeddings, labels, encoded)
        device = self.embeddings.device
        values, labels, encoded = embeddings.to(device, torch.float32), labels.to(device), encoded.to(device)
        norms = values.norm(dim=1)
        usable = torch.isfinite(norms) & (norms > _SHORTEST)
        self.refused += int((~usable).sum())
        values, labels, encoded = F.normalize(values[usable], dim=1), labels[usable], encoded[usable]
        order, place = self._places(labels)
        values, labels, encoded = values[order], labels[order], encoded[order]
        arriving = torch.bincount(labels, minlength=self.num_classes)
        # Of more than N arrivals of one class only the last N stay; the others would be overwritten anyway.
        keep = place >= arriving[labels] - self.slots
        row, column = labels[keep], (self.cursors[labels[keep]] + place[keep]) % self.slots
        self.embeddings[row, column] = values[keep]
        self.steps[row, column] = step
        self.ids[row, column] = encoded[keep]
        self.cursors = (self.cursors + arriving) % self.slots
        self.counts = (self.counts + arriving).clamp_max(self.slots)
        return int(usable.sum())

    def _check(self, embeddings: Tensor, labels: Tensor, encoded: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ArgumentError("embeddings", tuple(embeddings.shape), f"give (R, {self.dim})")
        if not len(embeddings) == len(labels) == len(encoded):
            sizes = (len(embeddings), len(labels), len(encoded))
            raise ArgumentError("embeddings, labels, image_ids", sizes, "give as many labels and ids as embeddings")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ArgumentError("labels", sorted(set(labels.tolist())), f"give classes in [0, {self.num_classes})")

    @staticmethod
    def _places(labels: Tensor) -> tuple[Tensor, Tensor]:
        """Order that groups the classes (stable), and each one's place among the arrivals of its class."""
        order = torch.argsort(labels, stable=True)
        grouped = labels[order]
        index = torch.arange(len(grouped), device=labels.device)
        starts = torch.searchsorted(grouped, grouped, right=False)
        return order, index - starts

    def oldest_first(self, label: int) -> Tensor:
        """Valid embeddings of a class `(count, D)` in the order they came."""
        count = int(self.counts[label])
        start = int(self.cursors[label]) if count == self.slots else 0
        index = (start + torch.arange(count, device=self.counts.device)) % self.slots
        return self.embeddings[label, index]

    def image_id(self, label: int, slot: int) -> str:
        """Image a slot came from; empty where the slot is."""
        return decode_id(self.ids[label, slot])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only, so that it is read back with `weights_only=True`."""
        state: dict[str, Any] = {name: getattr(self, name).detach().cpu().clone() for name in _TENSORS}
        state["refused"] = self.refused
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`.

        Raises:
            ArgumentError: if it has another number of classes, slots or channels.
        """
        found, own = tuple(state["embeddings"].shape), tuple(self.embeddings.shape)
        if found != own:
            raise ArgumentError(
                "memory",
                f"(classes, slots, channels)={found} in the checkpoint",
                f"this run has {own}; make them equal",
            )
        device = self.embeddings.device
        for name in _TENSORS:
            setattr(self, name, state[name].to(device).clone())
        self.refused = int(state["refused"])


_SHORTEST = 1e-12  # below it `F.normalize` no longer gives unit length
_TENSORS = ("embeddings", "counts", "cursors", "steps", "ids")
