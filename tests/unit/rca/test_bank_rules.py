"""The rules by which regions enter a full queue, against a plain loop in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import EnqueueBatch, RegionMemory

C, D = 3, 2
RULES = ["fifo", "ema_ring", "ema_nearest"]
BLENDING = RULES[1:]
TIE = 1e-6


class Loop:
    """One region after the other, in Python floats."""

    def __init__(self, slots: int, rule: str, ema: float) -> None:
        self.size, self.rule, self.ema = slots, rule, ema
        self.slots: list[list[tuple[list[float], str, int]]] = [[] for _ in range(C)]
        self.visits = [0] * C
        self.refused = 0

    def write(self, label: int, vector: list[float], name: str, step: int) -> bool:
        length = math.hypot(*vector)
        if not math.isfinite(length) or length == 0:
            self.refused += 1
            return False
        unit, queue = [value / length for value in vector], self.slots[label]
        if len(queue) < self.size:
            queue.append((unit, name, step))
            self.visits[label] += 1
            return True
        where = self.nearest(queue, unit) if self.rule == "ema_nearest" else self.visits[label] % self.size
        if self.rule != "fifo":
            mixed = [self.ema * a + (1 - self.ema) * b for a, b in zip(queue[where][0], unit, strict=True)]
            unit = [value / math.hypot(*mixed) for value in mixed]
        queue[where] = (unit, name, step)
        self.visits[label] += self.rule != "ema_nearest"
        return True

    @staticmethod
    def nearest(queue: list[tuple[list[float], str, int]], unit: list[float]) -> int:
        cosines = [sum(a * b for a, b in zip(vector, unit, strict=True)) for vector, _, _ in queue]
        gaps = [max(cosines) - cosine for cosine in cosines]
        assume(all(abs(gap - TIE) > 3e-7 for gap in gaps))  # there single precision may see a tie or not
        return next(slot for slot, gap in enumerate(gaps) if gap < TIE)


# Within a half-plane blends cannot cancel out, so that rounding is not blown up.
vectors = st.one_of(
    st.integers(0, 30).map(lambda tenth: [3 * math.cos(tenth / 10), 3 * math.sin(tenth / 10)]),
    st.sampled_from([[math.nan, 1.0], [math.inf, 0.0], [0.0, 0.0]]),
)
batches = st.lists(st.lists(st.tuples(st.integers(0, C - 1), vectors), max_size=12), max_size=4)


@settings(max_examples=60, deadline=None)
@given(
    # In half precision the loop would see other slots as nearest.
    how=st.sampled_from([*((rule, "float32") for rule in RULES), ("fifo", "float16"), ("ema_ring", "float16")]),
    ema=st.sampled_from([0.0, 0.3, 0.5, 0.9, 0.99]),
    slots=st.integers(1, 4),
    batches=batches,
)
def test_memory_by_loops(how, ema, slots, batches):
    (rule, dtype), off = how, {"float32": 1e-5, "float16": 1e-2}[how[1]]  # rounded at each blend
    memory, model = RegionMemory(C, slots, D, rule=rule, ema=ema, dtype=dtype), Loop(slots, rule, ema)
    for step, batch in enumerate(batches):
        names = [f"{step}/{index}" for index in range(len(batch))]
        written = [model.write(label, vector, name, step) for (label, vector), name in zip(batch, names, strict=True)]
        values = torch.tensor([vector for _, vector in batch]).reshape(-1, D)
        labels = torch.tensor([label for label, _ in batch], dtype=torch.long)
        assert memory.enqueue(values, labels, names, step) == sum(written)
        assert memory.refused == model.refused
        assert memory.cursors.tolist() == [visits % slots for visits in model.visits]
        for label, queue in enumerate(model.slots):
            assert int(memory.counts[label]) == len(queue)
            for slot, (vector, name, when) in enumerate(queue):
                assert memory.embeddings[label, slot].tolist() == pytest.approx(vector, abs=off)
                assert (memory.image_id(label, slot), int(memory.steps[label, slot])) == (name, when)
        assert not memory.embeddings[~memory.valid].any()
        assert not memory.ids[~memory.valid].any()
        lengths = memory.embeddings.float().norm(dim=2)
        torch.testing.assert_close(lengths, memory.valid.float(), atol=max(1e-5, off / 20), rtol=0)


def draw(count: int = 60, dim: int = 16, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    generator = torch.Generator().manual_seed(seed)
    # Uneven: class 0 gets its slots several times over, class 1 nothing.
    labels = 2 * (torch.rand(count, generator=generator) < 0.3).long()
    return torch.randn(count, dim, generator=generator), labels, [f"image {index}" for index in range(count)]


def assert_same(found: RegionMemory, expected: RegionMemory, *, exactly: bool) -> None:
    assert found.refused == expected.refused
    for name in ("counts", "cursors", "steps", "ids"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    if exactly:
        assert torch.equal(found.embeddings, expected.embeddings)
    torch.testing.assert_close(found.embeddings, expected.embeddings, atol=1e-6, rtol=0)


@pytest.mark.parametrize("rule", RULES)
def test_one_call_equals_one_region_at_a_time_by_every_rule(rule):
    values, labels, names = draw()
    together = RegionMemory(C, 7, 16, rule=rule, ema=0.8)
    single = RegionMemory(C, 7, 16, rule=rule, ema=0.8)
    together.enqueue(values, labels, names, step=5)
    for value, label, name in zip(values, labels, names, strict=True):
        single.enqueue(value[None], label[None], [name], step=5)
    assert together.counts.tolist() == [7, 0, 7]
    assert_same(together, single, exactly=False)


@pytest.mark.parametrize("rule", RULES)
def test_the_same_regions_give_the_same_bits(rule):
    first, second = (RegionMemory(C, 5, 16, rule=rule, ema=0.9) for _ in range(2))
    for step in range(4):
        values, labels, names = draw(seed=step)
        first.enqueue(values, labels, names, step)
        second.enqueue(values.clone(), labels.clone(), list(names), step)
        restarted = RegionMemory(C, 5, 16, rule=rule, ema=0.9)  # as a rank that read the checkpoint
        restarted.load_state_dict(second.state_dict())
        second = restarted
        assert_same(first, second, exactly=True)


def test_turns_keep_the_order_of_each_class():
    labels = torch.tensor([2, 0, 2, 2, 1, 0])
    index = torch.arange(6)
    arrivals = EnqueueBatch.grouped(index[:, None].float(), labels, index[:, None])
    assert arrivals.ids.flatten().tolist() == arrivals.values.flatten().tolist() == [1, 5, 4, 0, 2, 3]
    assert [arrivals.ids[turn, 0].tolist() for turn in arrivals.chunks(1)] == [[1, 4, 0], [5, 2], [3]]
    assert [arrivals.ids[turn, 0].tolist() for turn in arrivals.chunks(2)] == [[1, 5, 4, 0, 2], [3]]


def test_ring_without_memory_of_the_old_is_the_fifo():
    ring, fifo = RegionMemory(C, 7, 16, rule="ema_ring", ema=0.0), RegionMemory(C, 7, 16)
    for step in range(2):
        for memory in (ring, fifo):
            memory.enqueue(*draw(seed=step), step=step)
    assert_same(ring, fifo, exactly=False)


@pytest.mark.parametrize("rule", BLENDING)
def test_empty_slots_are_filled_and_not_blended_into(rule):
    # A share of one in ten million would leave nothing of a region blended into an empty slot.
    blending, fifo = RegionMemory(C, 60, 16, rule=rule, ema=1 - 1e-7), RegionMemory(C, 60, 16)
    for memory in (blending, fifo):
        assert memory.enqueue(*draw(), step=0) == 60
    assert_same(blending, fifo, exactly=True)


def axis(*signs: float) -> torch.Tensor:
    return torch.tensor([[sign, 0.0] for sign in signs])


def test_ring_blends_into_the_slots_in_turn():
    memory = RegionMemory(1, 2, D, rule="ema_ring", ema=0.6)
    up = torch.tensor([[0.0, 5.0]])
    regions = torch.cat([axis(2.0, 1.0), up, axis(1.0), up])
    memory.enqueue(regions, torch.zeros(5, dtype=torch.long), list("abcde"), step=3)
    once = [0.6 / math.hypot(0.6, 0.4), 0.4 / math.hypot(0.6, 0.4)]
    twice = [0.6 * once[0], 0.6 * once[1] + 0.4]
    assert memory.embeddings[0, 0].tolist() == pytest.approx([value / math.hypot(*twice) for value in twice])
    assert memory.embeddings[0, 1].tolist() == pytest.approx([1.0, 0.0])
    assert [memory.image_id(0, slot) for slot in range(2)] == ["e", "d"]


def test_nearest_leaves_the_other_slots_and_classes_alone():
    memory = RegionMemory(2, 2, D, rule="ema_nearest", ema=0.5)
    corner = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    memory.enqueue(corner.repeat(2, 1), torch.tensor([0, 0, 1, 1]), list("abcd"), step=0)
    memory.enqueue(torch.tensor([[0.1, 1.0]]), torch.tensor([0]), ["new"], step=4)
    expected = [0.1 / math.hypot(0.1, 1), 1 / math.hypot(0.1, 1) + 1]
    assert memory.embeddings[0, 1].tolist() == pytest.approx([value / math.hypot(*expected) for value in expected])
    assert torch.equal(memory.embeddings[0, 0], corner[0])
    assert torch.equal(memory.embeddings[1], corner)
    assert memory.steps.tolist() == [[0, 4], [0, 0]]
    assert memory.cursors.tolist() == [0, 0]
    assert memory.oldest_first(0).tolist() == memory.embeddings[0].tolist()
    memory.enqueue(corner[:1], torch.tensor([0]), ["newest"], step=9)
    assert memory.oldest_first(0).tolist() == memory.embeddings[0, [1, 0]].tolist()


@pytest.mark.parametrize(("angle", "slot"), [(0.001, 0), (0.002, 1)])
def test_a_cosine_within_a_millionth_of_the_highest_is_equal_to_it(angle, slot):
    memory = RegionMemory(1, 2, D, rule="ema_nearest")
    memory.enqueue(torch.tensor([[1.0, angle], [1.0, 0.0]]), torch.tensor([0, 0]), ["a", "b"], step=0)
    memory.enqueue(axis(1.0), torch.tensor([0]), ["new"], step=1)
    assert memory.image_id(0, slot) == "new"


@pytest.mark.parametrize("slots", [2, 5, 9])
def test_equally_near_slots_give_the_first(slots):
    memory = RegionMemory(1, slots, 33, rule="ema_nearest")
    same = torch.randn(1, 33, generator=torch.Generator().manual_seed(slots)).repeat(slots, 1)
    memory.enqueue(same, torch.zeros(slots, dtype=torch.long), ["old"] * slots, step=0)
    memory.enqueue(same[:1] + 0.3, torch.tensor([0]), ["new"], step=1)
    assert memory.steps[0].tolist() == [1] + [0] * (slots - 1)


def test_autocast_does_not_coarsen_the_search():
    memory = RegionMemory(1, 2, D, rule="ema_nearest")
    memory.enqueue(torch.tensor([[1.0, 0.03], [1.0, 0.0]]), torch.tensor([0, 0]), ["a", "b"], step=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        memory.enqueue(axis(1.0), torch.tensor([0]), ["new"], step=1)
    assert memory.steps[0].tolist() == [0, 1]


@pytest.mark.parametrize("tilt", [0.0, 1e-7])
@pytest.mark.parametrize("rule", BLENDING)
def test_opposite_region_leaves_the_slot_and_is_refused(rule, tilt):
    memory = RegionMemory(2, 1, D, rule=rule, ema=0.5)
    memory.enqueue(axis(1.0, 1.0), torch.tensor([0, 1]), ["a", "b"], step=0)
    regions = torch.tensor([[-1.0, tilt], [1.0, 0.0]])
    assert memory.enqueue(regions, torch.tensor([0, 1]), ["opposite", "like"], step=7) == 1
    assert memory.refused == 1
    assert memory.embeddings[:, 0].tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert [memory.image_id(label, 0) for label in range(2)] == ["a", "like"]
    assert memory.steps.tolist() == [[0], [7]]


def test_refused_blend_is_a_visit_of_the_ring():
    memory = RegionMemory(1, 2, D, rule="ema_ring", ema=0.5)
    memory.enqueue(axis(1.0, 1.0, -1.0), torch.zeros(3, dtype=torch.long), list("abc"), step=0)
    assert memory.refused == 1
    memory.enqueue(axis(1.0), torch.tensor([0]), ["d"], step=1)
    assert [memory.image_id(0, slot) for slot in range(2)] == ["a", "d"]


@pytest.mark.parametrize("rule", BLENDING)
def test_opposite_region_wins_or_loses_by_its_share(rule):
    for ema, expected in ((0.9, 1.0), (0.1, -1.0)):
        memory = RegionMemory(1, 1, D, rule=rule, ema=ema)
        assert memory.enqueue(axis(1.0, -1.0), torch.tensor([0, 0]), ["a", "b"], step=0) == 2
        assert memory.embeddings[0, 0].tolist() == pytest.approx([expected, 0.0])


@pytest.mark.parametrize("rule", BLENDING)
def test_rule_is_no_state_and_another_may_go_on(rule):
    fifo = RegionMemory(1, 2, D)
    fifo.enqueue(axis(1.0, 1.0, 1.0), torch.zeros(3, dtype=torch.long), list("abc"), step=0)
    memory = RegionMemory(1, 2, D, rule=rule, ema=0.5)
    assert memory.state_dict().keys() == fifo.state_dict().keys()
    memory.load_state_dict(fifo.state_dict())
    memory.enqueue(torch.tensor([[0.0, 1.0]]), torch.tensor([0]), ["d"], step=1)
    slot = 1 if rule == "ema_ring" else 0  # the ring goes on at the cursor, the nearest slot is the first of equals
    assert memory.image_id(0, slot) == "d"
    assert memory.embeddings[0, slot].tolist() == pytest.approx([math.sqrt(0.5), math.sqrt(0.5)])


@pytest.mark.parametrize("rule", RULES)
def test_ages_count_from_the_last_writing(rule):
    memory = RegionMemory(2, 2, D, rule=rule)
    assert memory.ages(0).tolist() == [[-1, -1], [-1, -1]]
    for step in (3, 5, 8):
        memory.enqueue(axis(1.0), torch.tensor([0]), [str(step)], step)
    ages = memory.ages(10)
    assert ages.dtype == torch.int64
    assert ages.tolist() == [[2, 5], [-1, -1]]
    assert memory.ages(8).tolist() == [[0, 3], [-1, -1]]
    with pytest.raises(ArgumentError, match=r"step=7: .*step 8"):
        memory.ages(7)


@pytest.mark.parametrize("rule", RULES)
def test_nothing_and_nothing_usable_arrive(rule):
    memory = RegionMemory(C, 2, D, rule=rule)
    assert memory.enqueue(torch.zeros(0, D), torch.zeros(0, dtype=torch.long), [], step=0) == 0
    assert memory.enqueue(torch.zeros(2, D), torch.tensor([0, 1]), ["a", "b"], step=0) == 0
    assert memory.refused == 2
    assert not memory.valid.any()


def test_unknown_rule_is_named():
    with pytest.raises(ArgumentError, match="rule='lifo': give 'fifo'"):
        RegionMemory(1, 1, 1, rule="lifo")


@pytest.mark.parametrize("ema", [-0.1, 1.0, 1.5, math.nan, math.inf])
def test_share_of_the_old_must_be_below_one(ema):
    with pytest.raises(ArgumentError, match=f"ema={ema}: give a number"):
        RegionMemory(1, 1, 1, rule="ema_ring", ema=ema)
