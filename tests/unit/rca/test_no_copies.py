"""A training step copies no memory: nothing as large as half of it is made."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from tests.new_storage import NewStorage

from rca_lightning.rca import contrast as streaming
from rca_lightning.rca.contrast import region_contrast_loss
from rca_lightning.rca.memory_bank import RegionMemory

C, N, D, R = 6, 40, 64, 5
HALF = C * N * D // 2


def full(**options) -> RegionMemory:
    memory = RegionMemory(C, N, D, **options)
    values = torch.randn(C * N + 7, D, generator=torch.Generator().manual_seed(0))
    memory.enqueue(values, torch.arange(len(values)) % C, [str(index) for index in range(len(values))], step=0)
    assert memory.valid.all()
    return memory


def regions() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    labels = torch.tensor([0, 1, 1, 4, 5])
    absent = torch.ones(R, C, dtype=torch.bool)
    absent[torch.arange(R), labels] = False
    return torch.randn(R, D, generator=torch.Generator().manual_seed(1)), labels, absent


def test_copies_are_seen():
    memory = full()
    with NewStorage() as watched:
        memory.embeddings.flatten(0, 1)  # a view
        assert not watched.made
        memory.embeddings * 2
    assert watched.made == [(2 * HALF, "aten.mul.Tensor")]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_writing(dtype):
    memory = full(dtype=dtype)
    values, labels, _ = regions()
    kept = memory.embeddings
    with NewStorage() as watched:
        assert memory.enqueue(values, labels, list("abcde"), step=1) == R
    assert memory.embeddings is kept
    assert 0 < watched.made[0][0] < HALF


@pytest.mark.parametrize("positives", ["all", "prototypes", "hardest"])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_contrast_forward_and_backward(positives, dtype, monkeypatch):
    monkeypatch.setattr(streaming, "BLOCK_BYTES", 4 * D * 30)
    memory = full(dtype=dtype)
    values, labels, absent = regions()
    values.requires_grad_()
    prototypes = F.normalize(torch.randn(C, 3, D), dim=2)
    with NewStorage() as watched:
        loss = region_contrast_loss(
            values, labels, absent, memory.embeddings, memory.valid, positives=positives, prototypes=prototypes
        )
        loss.backward()
    assert values.grad.any()
    assert 0 < watched.made[0][0] < HALF
