"""The running maximum of maps."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rca_lightning.errors import ArgumentError, DataError, WeightsError
from rca_lightning.pseudo_labels.attention_store import AttentionStore, grid_size

SIZES = {"a": (30, 40), "b": (40, 30), "c": (25, 25)}


def updates(count: int, seed: int = 0) -> list[tuple]:
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for number in range(count):
        name = "abc"[number % 3]
        classes = [number % 2, 2] if number % 5 else [1]
        maps = torch.rand(len(classes), *grid_size(SIZES[name], 8), generator=generator)
        drawn.append((name, SIZES[name], classes, maps))
    return drawn


def filled(drawn: list[tuple], **options) -> AttentionStore:
    store = AttentionStore(3, cells=8, **options)
    for one in drawn:
        store.update(*one)
    return store


def same(first: AttentionStore, second: AttentionStore) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(
        torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
        for name, value in one.items()
    )


def test_running_maximum_against_a_loop_in_float64():
    drawn = updates(40)
    store = filled(drawn)
    expected: dict = {}
    for name, _, classes, maps in drawn:
        for label, one in zip(classes, maps.double().numpy(), strict=True):
            kept = expected.setdefault((name, label), np.zeros_like(one))
            for row in range(one.shape[0]):
                for column in range(one.shape[1]):
                    kept[row, column] = max(kept[row, column], one[row, column])
    assert len(expected) == 9
    for (name, label), values in expected.items():
        found = store.grid(name, label)
        assert found.dtype == torch.float16
        np.testing.assert_allclose(found.double().numpy(), values, atol=2**-11)
        assert np.array_equal(found.numpy(), values.astype(np.float16))
    assert store.mib == sum(values.size for values in expected.values()) * 2 / 2**20
    assert len(store) == 3


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(14)))
def test_order_does_not_matter(order: list[int]):
    drawn = updates(14)
    assert same(filled(drawn), filled([drawn[index] for index in order]))


def test_zero_leaves_a_cell_as_it_is():
    store = AttentionStore(1, cells=2)
    store.update("a", (10, 10), [0], torch.tensor([[[0.25, 0.5], [0.75, 1.0]]]))
    store.update("a", (10, 10), [0], torch.tensor([[[0.0, 0.0], [0.0, 0.0]]]))
    store.update("a", (10, 10), [0], torch.tensor([[[float("nan"), 0.625], [0.0, float("nan")]]]))
    assert store.grid("a", 0).tolist() == [[0.25, 0.625], [0.75, 1.0]]


def test_the_store_keeps_nothing_of_what_it_was_given():
    maps = torch.ones(1, 2, 2, dtype=torch.float16)
    store = AttentionStore(1, cells=2)
    store.update("a", (10, 10), [0], maps)
    maps.zero_()
    assert store.grid("a", 0).tolist() == [[1.0, 1.0], [1.0, 1.0]]


def test_what_does_not_fit_is_refused_and_nothing_is_dropped():
    room = 2 * 64 * 2 / 2**20  # two square maps
    store = AttentionStore(3, cells=8, max_mib=room)
    store.update("a", (25, 25), [0, 1], torch.ones(2, 8, 8))
    before = store.state_dict()
    with pytest.raises(ArgumentError, match=r"max_mib=.*2 maps are there and no room for 1 more; give more room"):
        store.update("b", (25, 25), [0], torch.ones(1, 8, 8))
    with pytest.raises(ArgumentError, match="no room"):
        store.update("a", (25, 25), [0, 2], torch.full((2, 8, 8), 2.0))
    assert all(
        torch.equal(value, before[name]) if isinstance(value, torch.Tensor) else value == before[name]
        for name, value in store.state_dict().items()
    )
    store.update("a", (25, 25), [1], torch.ones(1, 8, 8))  # what is there may go on
    assert store.mib == room


def test_room_is_checked_beforehand():
    store = AttentionStore(3, cells=64, max_mib=10)
    store.check_room(1280)  # 8 KiB each
    with pytest.raises(ArgumentError, match=r"max_mib=10: 1281 maps may take 10.0 MiB; give 11 MiB, or cells=63"):
        store.check_room(1281)
    assert AttentionStore(3, cells=63, max_mib=10).most_mib(1281) <= 10
    store.check_room(0)


def test_read_at_the_size_of_the_photograph():
    store = AttentionStore(3, cells=4)
    store.update("a", (8, 16), [2], torch.tensor([[[0.0, 0.0, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]]]))
    maps = store.read("a", [0, 2], (8, 16))
    assert maps.shape == (2, 8, 16)
    assert maps.dtype == torch.float32
    assert torch.count_nonzero(maps[0]) == 0
    # A cell is 4 pixels: from one centre to the next, at x = 6 to 10, the value rises evenly.
    expected = np.interp(np.arange(16) + 0.5, [6, 10], [0, 1])
    np.testing.assert_allclose(maps[1].numpy(), np.tile(expected, (8, 1)), atol=1e-6)
    assert store.read("b", [2], (8, 16)) is None
    assert store.read("a", [], (8, 16)).shape == (0, 8, 16)
    with pytest.raises(DataError, match=r"image_id='a'.*8 x 16 pixels and this one has 16 x 8"):
        store.read("a", [2], (16, 8))


def test_two_photographs_of_one_name():
    store = AttentionStore(3, cells=4)
    store.update("a", (8, 8), [0], torch.ones(1, 4, 4))
    with pytest.raises(DataError, match="rename one"):
        store.update("a", (8, 9), [0], torch.ones(1, 4, 4))


def test_state_comes_back_without_code_in_the_file():
    store = filled(updates(20))
    file = io.BytesIO()
    torch.save(store.state_dict(), file)
    file.seek(0)
    back = AttentionStore(3, cells=8)
    back.load_state_dict(torch.load(file, weights_only=True))
    assert same(store, back)
    assert (len(back), back.mib) == (len(store), store.mib)
    more = updates(30)[20:]
    for one in more:
        back.update(*one)
    assert same(back, filled(updates(30)))
    assert not same(back, store)


def test_empty_state_comes_back():
    store = AttentionStore(3, cells=8)
    store.load_state_dict(AttentionStore(3, cells=8).state_dict())
    assert len(store) == 0


def test_state_of_another_grid_or_a_damaged_one():
    state = filled(updates(20)).state_dict()
    with pytest.raises(ArgumentError, match=r"cells=9: the checkpoint holds maps made with 8"):
        AttentionStore(3, cells=9).load_state_dict(state)
    with pytest.raises(ArgumentError, match=r"num_classes=2"):
        AttentionStore(2, cells=8).load_state_dict(state)
    with pytest.raises(ArgumentError, match="max_mib"):
        AttentionStore(3, cells=8, max_mib=0.0001).load_state_dict(state)
    with pytest.raises(WeightsError, match="damaged"):
        AttentionStore(3, cells=8).load_state_dict(state | {"values": state["values"][:-1]})


def test_maps_of_another_size():
    with pytest.raises(ArgumentError, match=r"maps=\(1, 4, 4\): give \(1, 3, 4\) for a photograph of 30 x 40"):
        AttentionStore(3, cells=4).update("a", (30, 40), [0], torch.ones(1, 4, 4))


@pytest.mark.parametrize(("name", "value"), [("cells", 0), ("max_mib", 0), ("max_mib", float("nan"))])
def test_bad_arguments_are_named(name: str, value: float):
    with pytest.raises(ArgumentError, match=name):
        AttentionStore(3, **{name: value})
