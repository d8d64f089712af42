"""What a region memory will take, before it is made."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from rca_lightning.rca.memory_bank import ID_BYTES, Placement, StoredType

LARGE = 0.25  # of the room; the network, its optimiser and clustering need theirs too
_NARROW = 256  # channels that a learned projection is advised to have


@dataclass(frozen=True, kw_only=True)
class Footprint:
    """Bytes of a region memory.

    Args:
        num_classes: queues `C`.
        slots: embeddings `N` a class.
        dim: channels `D`.
        dtype: of the embeddings.
        placement: see `RegionMemory`.
        device: of the module.
        processes: how many on this machine keep a memory each; on the host they share its room.

    Example:
        >>> size = Footprint(num_classes=81, slots=500, dim=2048, device=torch.device("cpu"))
        >>> size.embeddings, size.provenance
        (331776000, 2917296)
    """

    num_classes: int
    slots: int
    dim: int
    device: torch.device
    dtype: StoredType = "float32"
    placement: Placement = "device"
    processes: int = 1

    @property
    def embeddings(self) -> int:
        """Bytes of the embeddings: `C * N * D` numbers."""
        return self.num_classes * self.slots * self.dim * {"float32": 4, "float16": 2}[self.dtype]

    @property
    def provenance(self) -> int:
        """Bytes of what says where they come from: id and step of each slot, count and cursor of each queue."""
        return self.num_classes * (self.slots * (ID_BYTES + 8) + 2 * 8)

    @property
    def total(self) -> int:
        """Bytes of all that share one room."""
        each = self.embeddings + self.provenance
        return each * self.processes if self.home.type == "cpu" else each

    @property
    def home(self) -> torch.device:
        """Where the memory lives."""
        return torch.device("cpu") if self.placement == "host" else self.device

    def __str__(self) -> str:
        shape = f"{self.num_classes} queues x {self.slots} slots x {self.dim} channels, {self.dtype}"
        parts = (
            f"embeddings {_size(self.embeddings)} and their images and steps {_size(self.provenance)} on {self.home}"
        )
        shared = f", in each of {self.processes} processes" if self.processes > 1 else ""
        room = free_memory(self.home)
        free = f"; {_size(room[0])} of {_size(room[1])} are free there" if room else ""
        return f"region memory: {shape}: {parts}{shared}{free}"

    def warning(self) -> str | None:
        """What to change if this takes more than a quarter of a GPU, or of what is available on the host."""
        room = free_memory(self.home)
        if room is None:
            return None
        on_host = self.home.type == "cpu"
        limit, of = (room[0], "that is available on the host") if on_host else (room[1], f"of {self.home}")
        if self.total <= LARGE * limit:
            return None
        remedies = [
            *(["--memory.placement host"] if not on_host else []),
            *(["--memory.dtype float16"] if self.dtype == "float32" else []),
            *([f"--model.embedding_dim {_NARROW}"] if self.dim > _NARROW else []),
            "fewer --memory.slots",
        ]
        share = f"more than a quarter of the {_size(limit)} {of}"
        return f"the region memory takes {_size(self.total)}, {share}. Remedy: {', or '.join(remedies)}"


def free_memory(device: torch.device) -> tuple[int, int] | None:
    """Free and total bytes of a CUDA device or of the host; `None` where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)
    if device.type != "cpu" or not _MEMINFO.is_file():
        return None
    lines = (line.split() for line in _MEMINFO.read_text().splitlines())
    found = {words[0]: int(words[1]) * 1024 for words in lines if words}
    return found["MemAvailable:"], found["MemTotal:"]


def _size(count: int) -> str:
    for power, unit in ((30, "GiB"), (20, "MiB")):
        if count >= 2**power:
            return f"{count / 2**power:.1f} {unit}"
    return f"{count / 2**10:.1f} KiB"


_MEMINFO = Path("/proc/meminfo")
