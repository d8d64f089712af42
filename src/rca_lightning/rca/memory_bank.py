"""The region memory: one queue of embeddings a class (RCA, section 3.3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError

ID_BYTES = 64
_DIGEST = 16


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


Placement = Literal["device", "host"]
StoredType = Literal["float32", "float16"]


def check_placement(placement: Placement) -> None:
    """Refuse a name that is none.

    Raises:
        ArgumentError: for an unknown placement.
    """
    if placement not in get_args(Placement):
        raise ArgumentError("placement", placement, "give 'device' or 'host'")


def stored_type(name: StoredType) -> torch.dtype:
    """The dtype of that name.

    Raises:
        ArgumentError: for an unknown one.
    """
    if name not in get_args(StoredType):
        raise ArgumentError("dtype", name, "give 'float32' or 'float16'")
    return torch.float16 if name == "float16" else torch.float32


def placed(tensor: Tensor, device: torch.device, placement: Placement) -> Tensor:
    """The tensor on the device, or for "host" on the processor, page-locked where the device is a CUDA one.

    Only from page-locked memory a copy to the device runs beside computation, and at the full speed of the bus.
    """
    if placement == "device":
        return tensor.to(device)
    tensor = tensor.cpu()
    return tensor.pin_memory() if device.type == "cuda" else tensor


WriteRule = Literal["fifo", "ema_ring", "ema_nearest"]

_TIE = 1e-6  # above the rounding of a cosine, so that equal slots are equal on every device
_SHORTEST_BLEND = 1e-6  # a shorter sum of two unit vectors is their rounding error


@dataclass
class EnqueueBatch:
    """Regions that arrive together, class after class.

    Attributes:
        values: `(R, D)` unit vectors.
        labels: `(R,)` int64, ascending.
        ids: `(R, ID_BYTES)` encoded images.
        rank_in_class: `(R,)` int64, of each among the arrivals of its class, from 0.
    """

    values: Tensor
    labels: Tensor
    ids: Tensor
    rank_in_class: Tensor

    @classmethod
    def grouped(cls, values: Tensor, labels: Tensor, ids: Tensor) -> EnqueueBatch:
        """Group regions by class; those of one class stay in order."""
        order = torch.argsort(labels, stable=True)
        labels = labels[order]
        starts = torch.searchsorted(labels, labels, right=False)
        rank = torch.arange(len(labels), device=labels.device) - starts
        return cls(values[order], labels, ids[order], rank)

    def chunks(self, together: int) -> list[Tensor]:
        """Indices split into turns with at most `together` arrivals of a class each, the earlier ones first."""
        turn = self.rank_in_class // together
        sizes: list[int] = torch.bincount(turn).tolist()
        return list(torch.split(torch.argsort(turn, stable=True), sizes))


class NearestSlots:
    """The slots most similar to regions that arrive together, while these regions are being written.

    Args:
        embeddings: `(C, N, D)` unit vectors of the memory, of any precision, which may change; see `written`.
        arrivals: the `R` regions.
    """

    def __init__(self, embeddings: Tensor, arrivals: EnqueueBatch) -> None:
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


class RegionMemory:
    """Per class a queue of `slots` unit embeddings with the image and step each came from.

    Plain tensors, no parameters: nothing of it is in a graph or in a module's `state_dict`.
    While a class has empty slots its regions fill them, in order. What happens then is the rule:

    - "fifo": a region replaces the oldest one of its class. Every slot is one region of one image (the paper).
    - "ema_ring": the slots of a class are visited in turn, and each visit blends the region into what the slot
      holds: `normalise(ema * old + (1 - ema) * region)`, as in the authors' released code. There the memory
      starts as Gaussian noise that the first regions are blended into; here they fill it, since at 0.99 a
      third of the noise would be left after 100 visits of a slot, which is 100 times around the ring.
      A slot soon mixes unrelated images. `ema=0` makes this the FIFO.
    - "ema_nearest": a region is blended, by the same formula, into the slot of its class that is most
      similar to it (cosine; the first of those within 1e-6), so slots become running means of like regions.

    Image and step of a blended slot are those of the latest region in it. The rule is not part of the
    state: a memory written by one rule can go on under another.

    Args:
        num_classes: queues `C` (foreground classes, and one more for the background where it is kept).
        slots: embeddings `N` a class.
        dim: channels `D`.
        rule: how a region enters a full queue.
        ema: share of the old embedding in a blend, in `[0, 1)`; "fifo" does not use it.
        placement: where `to` puts the tensors: "device", or "host" for the memory of the processor, page-locked where
            the device is a CUDA one; `region_contrast_loss` reads those block by block.
        dtype: what embeddings are kept in: "float32", or "float16", half as large. Blends are computed in float32
            and rounded once.

    Attributes:
        embeddings: `(C, N, D)` in `dtype`, unit length where valid (in float16 within 5e-4), 0 elsewhere.
        counts: `(C,)` int64, valid slots; slots `0 .. count - 1` are the valid ones.
        cursors: `(C,)` int64, the slot the next embedding goes to; with "ema_nearest" only while one is empty.
        steps: `(C, N)` int64, training step of each slot, -1 where empty.
        refused: embeddings refused so far because they were not finite or (all but) zero, or cancelled
            out with what they were to be blended with.

    Raises:
        ArgumentError: for a size below 1, an unknown rule, placement or dtype, or `ema` outside `[0, 1)`.

    Example:
        >>> memory = RegionMemory(num_classes=2, slots=4, dim=3)
        >>> memory.enqueue(torch.ones(1, 3), torch.tensor([1]), ["photo"], step=0)
        1
        >>> memory.counts.tolist(), memory.image_id(1, 0)
        ([0, 1], 'photo')
    """

    def __init__(
        self,
        num_classes: int,
        slots: int,
        dim: int,
        *,
        rule: WriteRule = "fifo",
        ema: float = 0.99,
        placement: Placement = "device",
        dtype: StoredType = "float32",
    ) -> None:
        for name, value in (("num_classes", num_classes), ("slots", slots), ("dim", dim)):
            if value < 1:
                raise ArgumentError(name, value, "give at least 1")
        if rule not in get_args(WriteRule):
            raise ArgumentError("rule", rule, "give 'fifo', 'ema_ring' or 'ema_nearest'")
        if not 0 <= ema < 1:
            raise ArgumentError("ema", ema, "give a number in [0, 1): the share of the old embedding in a blend")
        check_placement(placement)
        self.rule: WriteRule = rule
        self.ema = ema
        self.placement: Placement = placement
        self.embeddings = torch.zeros(num_classes, slots, dim, dtype=stored_type(dtype))
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
            setattr(self, name, placed(getattr(self, name), torch.device(device), self.placement))
        return self

    @torch.no_grad()
    def enqueue(self, embeddings: Tensor, labels: Tensor, image_ids: Sequence[str] | Tensor, step: int) -> int:
        """Write regions, oldest first, by the rule of the memory.

        Embeddings are scaled to unit length. One that is shorter than 1e-12 or not finite is refused and
        counted in `refused`: it has no direction. So is one that cancels out with the slot it would be blended
        into (a sum shorter than 1e-6; the opposite of the slot at `ema=0.5`): the slot stays as it is,
        and the ring moves on.
        Several regions of one class in one call give what as many calls in that order give.

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
        arrivals = EnqueueBatch.grouped(F.normalize(values[usable], dim=1), labels[usable], encoded[usable])
        accepted = self._replace(arrivals, step) if self.rule == "fifo" else self._blend(arrivals, step)
        self.refused += len(values) - accepted
        return accepted

    def _replace(self, arrivals: EnqueueBatch, step: int) -> int:
        arriving = self._arriving(arrivals)
        labels, column = arrivals.labels, self._ring(arrivals)
        # Of more than N arrivals of one class only the last N stay; the others would be overwritten anyway.
        keep = arrivals.rank_in_class >= arriving[labels] - self.slots
        row, column = labels[keep], column[keep]
        self.embeddings[row, column] = arrivals.values[keep].to(self.embeddings.dtype)
        self.steps[row, column] = step
        self.ids[row, column] = arrivals.ids[keep]
        self._advance(arriving, arriving)
        return len(labels)

    def _blend(self, arrivals: EnqueueBatch, step: int) -> int:
        """Fill, then blend, as if one after the other; returns how many were accepted."""
        column, arriving = self._ring(arrivals), self._arriving(arrivals)
        empty = self.slots - self.counts
        blended = arrivals.rank_in_class >= empty[arrivals.labels]
        nearest = NearestSlots(self.embeddings, arrivals) if self.rule == "ema_nearest" else None
        accepted = torch.zeros((), dtype=torch.long, device=column.device)
        # Around the ring the next N arrivals of a class meet N slots; nearest slots depend on the arrival before.
        for turn in arrivals.chunks(together=1 if nearest else self.slots):
            row, slot, value, blends = arrivals.labels[turn], column[turn], arrivals.values[turn], blended[turn]
            if nearest:
                slot = torch.where(blends, nearest.find(turn), slot)
            mixed, directed = blend(self.embeddings[row, slot].float(), value, self.ema)
            written = directed | ~blends
            self.embeddings[row, slot] = torch.where(blends[:, None], mixed, value).to(self.embeddings.dtype)
            self.steps[row, slot] = torch.where(written, step, self.steps[row, slot])
            self.ids[row, slot] = torch.where(written[:, None], arrivals.ids[turn], self.ids[row, slot])
            if nearest:
                nearest.written(row, slot)
            accepted += written.sum()
        self._advance(arriving, torch.minimum(arriving, empty) if nearest else arriving)
        return int(accepted)

    def _ring(self, arrivals: EnqueueBatch) -> Tensor:
        """The slot of each arrival `(R,)` when all slots are visited in turn."""
        return (self.cursors[arrivals.labels] + arrivals.rank_in_class) % self.slots

    def _arriving(self, arrivals: EnqueueBatch) -> Tensor:
        return torch.bincount(arrivals.labels, minlength=self.num_classes)  # (C,)

    def _advance(self, arriving: Tensor, visited: Tensor) -> None:
        self.cursors = (self.cursors + visited) % self.slots
        self.counts = (self.counts + arriving).clamp_max(self.slots)

    def _check(self, embeddings: Tensor, labels: Tensor, encoded: Tensor) -> None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            raise ArgumentError("embeddings", tuple(embeddings.shape), f"give (R, {self.dim})")
        if not len(embeddings) == len(labels) == len(encoded):
            sizes = (len(embeddings), len(labels), len(encoded))
            raise ArgumentError("embeddings, labels, image_ids", sizes, "give as many labels and ids as embeddings")
        if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < self.num_classes:
            raise ArgumentError("labels", sorted(set(labels.tolist())), f"give classes in [0, {self.num_classes})")

    def oldest_first(self, label: int) -> Tensor:
        """Valid embeddings of a class `(count, D)` float32 in the order they were last written.

        With "ema_nearest" those written in one step stand in the order of their slots.
        """
        count = int(self.counts[label])
        if self.rule == "ema_nearest":
            return self.embeddings[label, torch.argsort(self.steps[label, :count], stable=True)].float()
        start = int(self.cursors[label]) if count == self.slots else 0
        index = (start + torch.arange(count, device=self.counts.device)) % self.slots
        return self.embeddings[label, index].float()

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


_SHORTEST = 1e-12  # below it `F.normalize` no longer gives unit length
_TENSORS = ("embeddings", "counts", "cursors", "steps", "ids")
