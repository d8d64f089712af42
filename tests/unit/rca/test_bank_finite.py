"""Whatever arrives, what the memory holds is finite and of unit length."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory

ODD = [torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-30, 1e-13, 1.0, -1.0, 1e15, 3e38, -3e38]
rows = st.lists(st.lists(st.sampled_from(ODD) | st.floats(-3, 3, width=32), min_size=3, max_size=3), max_size=8)


def write(memory: RegionMemory, values: Tensor, first: int = 0) -> int:
    labels = torch.arange(len(values)) % memory.num_classes
    return memory.enqueue(values, labels, [f"i{first + n}" for n in range(len(values))], first)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@settings(max_examples=25, deadline=None)
@given(calls=st.lists(rows, min_size=1, max_size=4))
def test_only_finite_unit_vectors_are_ever_held(dtype, calls):
    memory = RegionMemory(2, slots=2, dim=3, dtype=dtype)
    given_in_all = accepted = 0
    for number, call in enumerate(calls):
        values = torch.tensor(call, dtype=torch.float32).reshape(-1, 3)
        accepted += write(memory, values, 10 * number)
        given_in_all += len(values)
        assert torch.isfinite(memory.embeddings).all()
        lengths = memory.embeddings.float().norm(dim=2)
        torch.testing.assert_close(lengths, memory.valid.float(), rtol=0, atol=1e-3)
    assert accepted + memory.refused == given_in_all
    assert int(memory.counts.sum()) <= accepted


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_bad_rows_leave_no_trace(kind):
    draw = torch.Generator().manual_seed(1)
    values = torch.randn(12, 3, generator=draw).to(kind)
    bad = torch.arange(12) % 3 == 1
    values[bad, 0] = torch.tensor([torch.nan, torch.inf, -torch.inf, torch.nan], dtype=kind)
    labels, ids = torch.arange(12) // 6, [f"i{n}" for n in range(12)]
    mixed, clean = (RegionMemory(2, slots=3, dim=3) for _ in range(2))
    assert mixed.enqueue(values, labels, ids, 4) == 8
    assert mixed.refused == 4
    clean.enqueue(values[~bad], labels[~bad], [name for name, one in zip(ids, bad, strict=True) if not one], 4)
    for name in ("embeddings", "counts", "cursors", "steps", "ids"):
        assert torch.equal(getattr(mixed, name), getattr(clean, name)), name


def test_state_that_is_not_finite_is_refused_and_changes_nothing():
    memory = RegionMemory(1, slots=2, dim=3)
    write(memory, torch.ones(1, 3))
    state = memory.state_dict()
    state["embeddings"][0, 0, 0] = torch.nan
    state["counts"][0] = 2
    with pytest.raises(ArgumentError, match="memory='not finite in the checkpoint'"):
        memory.load_state_dict(state)
    assert memory.counts.tolist() == [1]
    assert torch.isfinite(memory.embeddings).all()
