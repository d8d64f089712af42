"""What a memory takes is what is told of it, and advice comes where it is too much."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.rca import footprint
from rca_lightning.rca.footprint import Footprint, free_memory
from rca_lightning.rca.memory_bank import RegionMemory

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
GIB = 2**30


def large(**options) -> Footprint:
    given = {"num_classes": 80, "slots": 4000, "dim": 3072, "device": GPU} | options
    return Footprint(**given)


@pytest.fixture
def room(monkeypatch) -> dict[str, tuple[int, int]]:
    """Free and total bytes of each kind of device."""
    found = {"cuda": (10 * GIB, 14 * GIB), "cpu": (20 * GIB, 64 * GIB)}
    monkeypatch.setattr(footprint, "free_memory", lambda device: found.get(device.type))
    return found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_bytes_are_those_of_the_tensors(dtype):
    memory = RegionMemory(3, 5, 7, dtype=dtype)
    size = Footprint(num_classes=3, slots=5, dim=7, dtype=dtype, device=CPU)
    assert size.embeddings == memory.embeddings.numel() * memory.embeddings.element_size()
    others = (memory.counts, memory.cursors, memory.steps, memory.ids)
    assert size.provenance == sum(tensor.numel() * tensor.element_size() for tensor in others)


def test_sentence(room):
    assert str(large(processes=2)) == (
        "region memory: 80 queues x 4000 slots x 3072 channels, float32: embeddings 3.7 GiB and their images and steps "
        "22.0 MiB on cuda:0, in each of 2 processes; 10.0 GiB of 14.0 GiB are free there"
    )
    room.clear()
    assert str(large(slots=1)).endswith("embeddings 960.0 KiB and their images and steps 6.9 KiB on cuda:0")


def test_warning_of_a_large_one_on_a_gpu(room):
    assert large().warning() == (
        "the region memory takes 3.7 GiB, more than a quarter of the 14.0 GiB of cuda:0. Remedy: --memory.placement "
        "host, or --memory.dtype float16, or --model.embedding_dim 256, or fewer --memory.slots"
    )
    assert large(processes=8).total == large().total  # each has a GPU of its own
    room["cuda"] = (0, 15 * GIB)
    assert large().warning() is None


def test_warning_names_only_what_helps(room):
    room["cpu"] = (2 * GIB, 64 * GIB)
    found = large(dtype="float16", placement="host", dim=256, slots=20000).warning()
    assert found is not None
    assert "2.0 GiB that is available on the host" in found
    assert found.endswith("Remedy: fewer --memory.slots")


def test_processes_share_the_host(room):
    assert large(placement="host").warning() is None
    assert large(placement="host", processes=2).warning() is not None
    assert large(device=CPU, processes=2).total == 2 * large().total


def test_unknown_room_is_no_reason_to_warn(room):
    assert large(device=torch.device("mps")).warning() is None


def test_memory_of_the_host_is_read(tmp_path, monkeypatch):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       2048 kB\nMemFree:   1 kB\nMemAvailable:   1024 kB\nHugePages_Total:   0\n")
    monkeypatch.setattr(footprint, "_MEMINFO", path)
    assert free_memory(CPU) == (2**20, 2**21)
    monkeypatch.setattr(footprint, "_MEMINFO", tmp_path / "none")
    assert free_memory(CPU) is None
    assert free_memory(torch.device("mps")) is None
