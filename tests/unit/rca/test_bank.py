"""The region memory against `collections.deque(maxlen=N)`, one a class."""

from __future__ import annotations

import io
import math
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory, decode_id, encode_ids

C, D = 3, 2
Arrival = tuple[int, float, str]  # class, angle of the embedding, image

arrivals = st.lists(
    st.tuples(
        st.integers(0, C - 1),
        st.one_of(st.floats(0, 6.28), st.sampled_from([math.nan, math.inf])),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=70),
    ),
    max_size=12,
)


def embedding(angle: float, length: float = 3.0) -> list[float]:
    if math.isnan(angle):
        return [0.0, 0.0]  # stands for an embedding without direction
    return [length * math.cos(angle), length * math.sin(angle)] if math.isfinite(angle) else [math.inf, 1.0]


def enqueue(memory: RegionMemory, batch: list[Arrival], step: int) -> int:
    values = torch.tensor([embedding(angle) for _, angle, _ in batch]).reshape(-1, D)
    labels = torch.tensor([label for label, _, _ in batch], dtype=torch.long)
    return memory.enqueue(values, labels, [name for _, _, name in batch], step)


def contents(memory: RegionMemory, label: int) -> list[tuple[list[float], str, int]]:
    """Slots of a class from oldest to newest, walked by the cursor."""
    count, cursor = int(memory.counts[label]), int(memory.cursors[label])
    slots = [(cursor - count + place) % memory.slots for place in range(count)]
    return [
        (memory.embeddings[label, s].tolist(), memory.image_id(label, s), int(memory.steps[label, s])) for s in slots
    ]


@settings(max_examples=60, deadline=None)
@given(slots=st.integers(1, 5), batches=st.lists(arrivals, max_size=8), dtype=st.sampled_from(["float32", "float16"]))
def test_memory_is_a_deque_a_class(slots, batches, dtype):
    memory, off = RegionMemory(C, slots, D, dtype=dtype), {"float32": 1e-6, "float16": 5e-4}[dtype]
    model: list[deque] = [deque(maxlen=slots) for _ in range(C)]
    refused = 0
    for step, batch in enumerate(batches):
        accepted = 0
        for label, angle, name in batch:
            if math.isfinite(angle):
                model[label].append(([math.cos(angle), math.sin(angle)], name, step))
                accepted += 1
        refused += len(batch) - accepted
        assert enqueue(memory, batch, step) == accepted
        assert memory.refused == refused
        for label in range(C):
            found = contents(memory, label)
            assert len(found) == len(model[label])
            for (vector, name, when), (expected, image, at) in zip(found, model[label], strict=True):
                assert vector == pytest.approx(expected, abs=off)
                assert name == decode_id(encode_ids([image])[0])
                assert when == at
        assert memory.valid.sum(dim=1).tolist() == [len(queue) for queue in model]
        assert (memory.counts < slots).logical_or(memory.valid.all(dim=1)).all()
        norms = memory.embeddings.float().norm(dim=2)
        torch.testing.assert_close(norms, memory.valid.float(), atol=off, rtol=0)
        assert torch.equal(memory.steps >= 0, memory.valid)


def rows(*angles: float) -> torch.Tensor:
    return torch.tensor([embedding(angle) for angle in angles])


def test_more_arrivals_than_slots_keep_the_last_ones_in_their_slots():
    memory = RegionMemory(2, 3, D)
    memory.enqueue(rows(0.0), torch.tensor([1]), ["first"], step=0)
    memory.enqueue(rows(*[0.1 * k for k in range(1, 6)]), torch.ones(5, dtype=torch.long), list("abcde"), step=1)
    # One after the other: slots 1, 2, 0, 1, 2 and the next one goes to 0.
    assert [memory.image_id(1, slot) for slot in range(3)] == ["c", "d", "e"]
    assert memory.cursors.tolist() == [0, 0]
    assert memory.counts.tolist() == [0, 3]


def test_one_call_equals_one_region_at_a_time():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(40, D, generator=generator)
    labels = torch.randint(0, C, (40,), generator=generator)
    names = [f"image {index}" for index in range(40)]
    together, single = RegionMemory(C, 7, D), RegionMemory(C, 7, D)
    together.enqueue(values, labels, names, step=5)
    for value, label, name in zip(values, labels, names, strict=True):
        single.enqueue(value[None], label[None], [name], step=5)
    for key, value in together.state_dict().items():
        assert torch.equal(torch.as_tensor(value), torch.as_tensor(single.state_dict()[key])), key


@pytest.mark.parametrize("length", [1e-30, 1e-12, 1e-6, 1.0, 1e15])
def test_stored_embeddings_have_unit_length_or_are_refused(length):
    memory = RegionMemory(1, 4, D)
    accepted = memory.enqueue(torch.tensor([embedding(0.3, length)]), torch.tensor([0]), ["a"], step=0)
    assert accepted + memory.refused == 1
    assert accepted == (length > 1e-9)
    if accepted:
        assert memory.embeddings[0, 0].tolist() == pytest.approx([math.cos(0.3), math.sin(0.3)], abs=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_bad_number_refuses_its_row_only(value):
    memory = RegionMemory(1, 4, D)
    values = torch.tensor([[1.0, value], [0.0, 2.0]])
    assert memory.enqueue(values, torch.tensor([0, 0]), ["bad", "good"], step=0) == 1
    assert memory.refused == 1
    assert (memory.counts.tolist(), memory.image_id(0, 0), memory.image_id(0, 1)) == ([1], "good", "")


def test_encoded_ids_half_precision_and_graphs_are_accepted():
    memory = RegionMemory(1, 2, D)
    values = rows(0.5).bfloat16().requires_grad_()
    memory.enqueue(values, torch.tensor([0]), encode_ids(["photo"]), step=0)
    assert memory.image_id(0, 0) == "photo"
    assert memory.embeddings.dtype == torch.float32
    assert not memory.embeddings.requires_grad


def test_what_is_given_is_copied():
    memory = RegionMemory(1, 2, D)
    values = torch.tensor([[1.0, 0.0]])
    memory.enqueue(values, torch.tensor([0]), ["a"], step=0)
    values.zero_()
    assert memory.embeddings[0, 0].tolist() == [1.0, 0.0]


def test_state_comes_back_through_a_file_read_with_weights_only():
    memory = RegionMemory(C, 4, D)
    enqueue(memory, [(k % C, 0.1 * k, f"image {k}") for k in range(11)] + [(0, math.nan, "bad")], step=3)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    again = RegionMemory(C, 4, D)
    again.load_state_dict(torch.load(file, weights_only=True))
    for label in range(C):
        assert contents(again, label) == contents(memory, label)
    assert again.refused == 1
    more = [(k % C, 0.2 * k, f"later {k}") for k in range(5)]
    enqueue(again, more, step=4)
    enqueue(memory, more, step=4)
    assert torch.equal(again.embeddings, memory.embeddings)
    assert torch.equal(again.ids, memory.ids)


def test_state_is_a_snapshot_and_loading_shares_nothing():
    memory = RegionMemory(1, 2, D)
    state = memory.state_dict()
    again = RegionMemory(1, 2, D)
    again.load_state_dict(state)
    memory.enqueue(rows(0.1), torch.tensor([0]), ["a"], step=0)
    again.enqueue(rows(0.2), torch.tensor([0]), ["b"], step=0)
    assert not state["embeddings"].any()
    assert state["counts"].tolist() == [0]


@pytest.mark.parametrize(
    ("shape", "both"),
    [
        ((4, 4, 2), "classes (with the background) 4 in the checkpoint, 3 in this run"),
        ((3, 5, 2), "slots 5 in the checkpoint, 4 in this run"),
        ((3, 4, 3), "channels 3 in the checkpoint, 2 in this run"),
    ],
)
def test_state_of_another_shape_names_both(shape, both):
    with pytest.raises(ArgumentError) as caught:
        RegionMemory(3, 4, 2).load_state_dict(RegionMemory(*shape).state_dict())
    assert both in str(caught.value)


@pytest.mark.parametrize(
    ("values", "labels", "names", "argument"),
    [
        (torch.ones(2, 3), [0, 1], ["a", "b"], "embeddings"),
        (torch.ones(2), [0, 1], ["a", "b"], "embeddings"),
        (torch.ones(2, D), [0], ["a", "b"], "image_ids"),
        (torch.ones(2, D), [0, 1], ["a"], "image_ids"),
        (torch.ones(2, D), [0, C], ["a", "b"], "labels"),
        (torch.ones(2, D), [-1, 0], ["a", "b"], "labels"),
    ],
)
def test_bad_regions_are_refused_and_change_nothing(values, labels, names, argument):
    memory = RegionMemory(C, 4, D)
    with pytest.raises(ArgumentError, match=argument):
        memory.enqueue(values, torch.tensor(labels), names, step=0)
    assert not memory.counts.any()
    assert memory.refused == 0


def test_nothing_and_nothing_usable_arrive():
    memory = RegionMemory(C, 4, D)
    assert memory.enqueue(torch.zeros(0, D), torch.zeros(0, dtype=torch.long), [], step=0) == 0
    assert memory.enqueue(torch.zeros(2, D), torch.tensor([0, 1]), ["a", "b"], step=0) == 0
    assert memory.refused == 2
    assert not memory.valid.any()


def test_ages_count_from_the_last_writing():
    memory = RegionMemory(2, 2, D)
    assert memory.ages(0).tolist() == [[-1, -1], [-1, -1]]
    for step in (3, 5, 8):
        memory.enqueue(rows(0.1), torch.tensor([0]), [str(step)], step)
    ages = memory.ages(10)
    assert ages.dtype == torch.int64
    assert ages.tolist() == [[2, 5], [-1, -1]]
    assert memory.ages(8).tolist() == [[0, 3], [-1, -1]]
    with pytest.raises(ArgumentError, match=r"step=7: .*step 8"):
        memory.ages(7)


@pytest.mark.parametrize(("sizes", "name"), [((0, 1, 1), "num_classes"), ((1, 0, 1), "slots"), ((1, 1, 0), "dim")])
def test_sizes_must_be_positive(sizes, name):
    with pytest.raises(ArgumentError, match=f"{name}=0"):
        RegionMemory(*sizes)


@pytest.mark.parametrize("removed", [{"rule": "ema_ring"}, {"rule": "fifo"}, {"ema": 0.9}])
def test_removed_arguments_say_what_became_of_them(removed):
    with pytest.raises(ArgumentError, match=rf"{next(iter(removed))}=.*gone since 0\.2; the memory is first in"):
        RegionMemory(1, 1, 1, **removed)


def test_sizes_are_properties():
    memory = RegionMemory(2, 3, 4).to("cpu")
    assert (memory.num_classes, memory.slots, memory.dim) == (2, 3, 4)
