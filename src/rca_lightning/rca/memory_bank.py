"""The region memory: one queue of embeddings a class (RCA, section 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError, refuse_removed

Placement = Literal["device", "host"]
StoredType = Literal["float32", "float16"]

ID_BYTES = 64  # of an image id
_DIGEST = 16
_TENSORS = ("embeddings", "counts", "cursors", "steps", "ids")
_SHORTEST = 1e-12  # below it `F.normalize` no longer gives unit length
_FIFO = "gone since 0.2; the memory is first in, first out, as in the paper, and takes no such argument"
REMOVED = {"memory.rule": _FIFO, "memory.ema": _FIFO}
"""Arguments of earlier versions, for `refuse_removed`."""


class RegionMemory:
    """First-in first-out queue of region embeddings for each class (RCA, arXiv 2203.09653, section 3.3).

    Each class has `slots` unit vectors, each with the image and the training step it comes from. A new region takes
    the next empty slot of its class, or the slot of the oldest region. The memory consists of plain tensors: nothing
    of it is in a graph or in a module's `state_dict`.

    Args:
        num_classes: queues `C` (foreground classes, and one more for the background where it is kept).
        slots: embeddings `N` a class.
        dim: channels `D`.
        placement: where `to` puts the tensors: "device", or "host" for the memory of the processor, page-locked where
            the device is a CUDA one; `region_contrast_loss` reads those block by block.
        dtype: what embeddings are kept in: "float32", or "float16", half as large.

    Attributes:
        embeddings: `(C, N, D)` in `dtype`, unit length where valid (in float16 within 5e-4), 0 elsewhere.
        counts: `(C,)` int64, valid slots; slots `0 .. count - 1` are the valid ones.
        cursors: `(C,)` int64, the slot the next embedding goes to.
        steps: `(C, N)` int64, training step of each slot, -1 where empty.
        ids: `(C, N, ID_BYTES)` uint8, image of each slot, see `encode_ids`.
        refused: embeddings refused so far because they were not finite or (all but) zero.

    Raises:
        ArgumentError: for a size below 1, or an unknown placement or dtype.

    Example:
        >>> memory = RegionMemory(num_classes=2, slots=4, dim=3)
        >>> memory.enqueue(torch.ones(1, 3), torch.tensor([1]), ["photo"], step=0)
        1
        >>> memory.counts.tolist(), memory.image_id(1, 0)
        ([0, 1], 'photo')
    """

    @refuse_removed(**REMOVED)
    @check_arguments
    def __init__(
        self,
        num_classes: int,
        slots: int,
        dim: int,
        *,
        placement: Placement = "device",
        dtype: StoredType = "float32",
    ) -> None:
        for name, value in (("num_classes", num_classes), ("slots", slots), ("dim", dim)):
            if value < 1:
                raise ArgumentError(name, value, "give at least 1")
        self.placement: Placement = placement
        self.embeddings = torch.zeros(num_classes, slots, dim, dtype=getattr(torch, dtype))
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
        """Move every tensor, or page-lock it where it is if the placement is "host"; returns itself."""
        for name in _TENSORS:
            setattr(self, name, self._placed(getattr(self, name), torch.device(device)))
        return self

    def _placed(self, tensor: Tensor, device: torch.device) -> Tensor:
        if self.placement == "device":
            return tensor.to(device)
        # Only from page-locked memory a copy to the device runs beside computation, and at the full speed of the bus.
        return tensor.cpu().pin_memory() if device.type == "cuda" else tensor.cpu()

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, image_ids: Sequence[str] | Tensor, step: int) -> int:
        """Enqueue regions; each replaces the oldest one of its class (RCA, section 3.3, equation (4)).

        Regions come oldest first, and are scaled to unit length. One that is shorter than 1e-12 or not finite has no
        direction: it is refused and counted in `refused`. Several regions of one class in one call give what as many
        calls in that order give.

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
        if self.embeddings.is_pinned():
            torch.cuda.current_stream().synchronize()  # the loss of this step may still be reading slots
        values, labels, encoded = embeddings.to(device, torch.float32), labels.to(device), encoded.to(device)
        norms = values.norm(dim=1)
        usable = torch.isfinite(norms) & (norms > _SHORTEST)
        labels, order = labels[usable].sort(stable=True)  # class after class, those of a class in their order
        values, encoded = F.normalize(values[usable], dim=1)[order], encoded[usable][order]
        arriving = torch.bincount(labels, minlength=self.num_classes)  # (C,)
        rank_in_class = torch.arange(len(labels), device=device) - torch.searchsorted(labels, labels)  # (R,), from 0
        slot = (self.cursors[labels] + rank_in_class) % self.slots
        # Of more than N regions of one class only the last N stay; the others would be overwritten anyway.
        kept = rank_in_class >= arriving[labels] - self.slots
        row, slot = labels[kept], slot[kept]
        self.embeddings[row, slot] = values[kept].to(self.embeddings.dtype)
        self.steps[row, slot] = step
        self.ids[row, slot] = encoded[kept]
        self.cursors = (self.cursors + arriving) % self.slots
        self.counts = (self.counts + arriving).clamp_max(self.slots)
        self.refused += len(embeddings) - len(labels)
        return len(labels)

    def _check(self, embeddings: Tensor, labels: Tensor, encoded: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ArgumentError("embeddings", tuple(embeddings.shape), f"give (R, {self.dim})")
        if not len(embeddings) == len(labels) == len(encoded):
            sizes = (len(embeddings), len(labels), len(encoded))
            raise ArgumentError("embeddings, labels, image_ids", sizes, "give as many labels and ids as embeddings")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ArgumentError("labels", sorted(set(labels.tolist())), f"give classes in [0, {self.num_classes})")

    def clear(self) -> None:
        """Empty every queue."""
        self.embeddings.zero_()
        self.counts.zero_()
        self.cursors.zero_()
        self.steps.fill_(-1)
        self.ids.zero_()

    def ages(self, step: int) -> Tensor:
        """Steps since each slot was last written, `(C, N)` int64, -1 where empty.

        Args:
            step: the current training step.

        Raises:
            ArgumentError: if a slot was written after `step`.
        """
        latest = int(self.steps.max())
        if step < latest:
            raise ArgumentError("step", step, f"give the current step: a slot was written at step {latest}")
        return torch.where(self.valid, step - self.steps, -1)

    def image_id(self, label: int, slot: int) -> str:
        """Image a slot came from; empty where the slot is."""
        return decode_id(self.ids[label, slot])

    def state_dict(self) -> dict[str, Any]:
        """Tensors and numbers only, so that it is read back with `weights_only=True`."""
        state: dict[str, Any] = {name: getattr(self, name).to("cpu", copy=True) for name in _TENSORS}
        state["refused"] = self.refused
        return state

    def differences(self, state: Mapping[str, Any]) -> list[str]:
        """Sizes in which the memory of a `state_dict` differs from this one, each with both values."""
        names = ("classes (with the background)", "slots", "channels")
        sizes = zip(names, state["embeddings"].shape, self.embeddings.shape, strict=True)
        return [f"{name} {found} in the checkpoint, {own} in this run" for name, found, own in sizes if found != own]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a `state_dict`, also of another placement or dtype; its embeddings are rounded to the dtype here.

        Raises:
            ArgumentError: if it has another number of classes, slots or channels, or embeddings that are not finite.
        """
        others = self.differences(state)
        if others:
            raise ArgumentError("memory", "; ".join(others), "make them equal")
        if not bool(torch.isfinite(state["embeddings"]).all()):
            raise ArgumentError("memory", "not finite in the checkpoint", "give a checkpoint with a sound memory")
        for name in _TENSORS:
            getattr(self, name).copy_(state[name])
        self.refused = int(state["refused"])


def encode_ids(image_ids: Sequence[str]) -> Tensor:
    """Encode ids to `(R, ID_BYTES)` uint8, zero-padded UTF-8.

    An id longer than `ID_BYTES` keeps its end and gets a digest of the whole in front, so that two long ids
    stay different.
    """
    rows = torch.zeros(len(image_ids), ID_BYTES, dtype=torch.uint8)
    for row, image_id in zip(rows, image_ids, strict=True):
        data = image_id.encode(errors="surrogatepass")  # what Python makes of file names that are no UTF-8
        if len(data) > ID_BYTES:
            digest = hashlib.blake2b(data, digest_size=_DIGEST // 2).hexdigest()
            data = digest.encode() + b"~" + data[-(ID_BYTES - _DIGEST - 1) :]
        row[: len(data)] = torch.tensor(list(data), dtype=torch.uint8)
    return rows


def decode_id(row: Tensor) -> str:
    """The id in one row of `encode_ids`."""
    return bytes(row.tolist()).rstrip(b"\0").decode(errors="replace")
