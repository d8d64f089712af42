"""A memory on the host or in half precision holds what the other one holds, rounded."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory

C, N, D = 3, 5, 16
HALF = 2**-11  # relative rounding of float16


def draw(count: int = 40) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(count, D, generator=generator)
    return values, torch.randint(0, C, (count,), generator=generator), [f"image {index}" for index in range(count)]


def filled(*, parts: int = 1, **options) -> RegionMemory:
    memory, (values, labels, names) = RegionMemory(C, N, D, **options), draw()
    for step, index in enumerate(torch.arange(len(values)).chunk(parts)):
        memory.enqueue(values[index], labels[index], [names[row] for row in index.tolist()], step)
    return memory


def test_half_precision_writes_into_the_same_slots():
    single, half = filled(parts=4), filled(parts=4, dtype="float16")
    assert half.embeddings.dtype == torch.float16
    for name in ("counts", "cursors", "steps", "ids"):
        assert torch.equal(getattr(half, name), getattr(single, name)), name
    assert torch.equal(half.embeddings, single.embeddings.half())  # rounded once
    lengths = half.embeddings.double().norm(dim=2)
    assert (lengths[half.valid] - 1).abs().max() < HALF


def test_half_precision_in_one_call_equals_one_region_at_a_time():
    together, single = (filled(dtype="float16", parts=parts) for parts in (1, 40))
    assert torch.equal(together.ids, single.ids)
    assert torch.equal(together.embeddings, single.embeddings)


def test_host_stays_where_the_processor_is():
    values, labels, names = draw()
    memory = RegionMemory(C, N, D, placement="host").to("meta")  # stands for any other device
    assert {memory.embeddings.device.type, memory.counts.device.type, memory.valid.device.type} == {"cpu"}
    assert RegionMemory(C, N, D).to("meta").embeddings.device.type == "meta"
    memory.enqueue(values, labels, names, step=0)
    assert torch.equal(memory.embeddings, filled().embeddings)
    assert not memory.embeddings.is_pinned()  # only a CUDA device has a use for it


@pytest.mark.parametrize("own", ["float32", "float16"])
@pytest.mark.parametrize("other", ["float32", "float16"])
@pytest.mark.parametrize("placement", ["device", "host"])
def test_state_of_another_placement_or_dtype_is_taken_over(own, other, placement):
    memory, again = filled(dtype=own), RegionMemory(C, N, D, dtype=other, placement=placement)
    kept = again.embeddings
    again.load_state_dict(memory.state_dict())
    assert again.embeddings is kept  # and not a second one beside it
    expected = memory.embeddings.to(kept.dtype)
    assert torch.equal(again.embeddings, expected)
    assert again.state_dict()["embeddings"].dtype == kept.dtype
    for name in ("counts", "cursors", "steps", "ids"):
        assert torch.equal(getattr(again, name), getattr(memory, name)), name
    assert again.embeddings.data_ptr() != memory.embeddings.data_ptr()


@pytest.mark.parametrize("wrong", [{"placement": "disk"}, {"dtype": "float64"}])
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        RegionMemory(1, 1, 1, **wrong)
