"""Propagation inside an image against a plain loop in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rca_lightning.errors import ArgumentError
from rca_lightning.rca import propagation
from rca_lightning.rca.propagation import mirror_rows, propagate, propagate_by


def loop(maps: torch.Tensor, embeddings: torch.Tensor, power: float) -> torch.Tensor:
    """One step in plain Python."""
    batch, count, height, width = maps.shape
    found = maps.double().clone()
    places = [(y, x) for y in range(height) for x in range(width)]
    for b in range(batch):
        vectors = {place: [float(v) for v in embeddings[b, :, place[0], place[1]]] for place in places}
        lengths = {place: math.sqrt(sum(v * v for v in vector)) for place, vector in vectors.items()}
        for one in places:
            weights = {}
            for other in places:
                dot = sum(u * v for u, v in zip(vectors[one], vectors[other], strict=True))
                size = lengths[one] * lengths[other]
                weights[other] = max(dot / size, 0.0) ** power if size else 0.0
            total = sum(weights.values())
            for k in range(count):
                if total:
                    value = sum(w * float(maps[b, k, y, x]) for (y, x), w in weights.items()) / total
                    found[b, k, one[0], one[1]] = value
    return found


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("power", [0.5, 1.0, 2.0, 3.0, 8.0])
@pytest.mark.parametrize("steps", [0, 1, 2])
def test_plain_loop(power, steps):
    maps, embeddings = draw(2, 3, 4, 5).abs(), draw(2, 6, 4, 5, seed=1)
    embeddings[1, :, 2, 3] = 0  # like no other
    expected = maps.double()
    for _ in range(steps):
        expected = loop(expected, embeddings, power)
    found = propagate(maps, embeddings, power=power, steps=steps)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected.float(), atol=1e-5, rtol=1e-4)
    assert torch.equal(found[1, :, 2, 3], maps[1, :, 2, 3])


@pytest.mark.parametrize("block", [1, 4 * 2 * 20 * 3, 4 * 2 * 20 * 7])
def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch, block):
    maps, embeddings = draw(2, 3, 4, 5), draw(2, 6, 4, 5, seed=1)
    whole = propagate(maps, embeddings, steps=2)
    monkeypatch.setattr(propagation, "BLOCK_BYTES", block)
    torch.testing.assert_close(propagate(maps, embeddings, steps=2), whole)


def test_another_affinity_takes_the_place_of_the_cosines():
    maps, affinity = draw(1, 2, 2, 3), draw(1, 6, 6, seed=2).abs()
    affinity[0, 4] = 0
    found = propagate(maps, maps, affinity=affinity).flatten(2)[0]
    rows = affinity[0] / affinity[0].sum(1, keepdim=True)
    expected = (rows @ maps.flatten(2)[0].T).T
    expected[:, 4] = maps.flatten(2)[0, :, 4]
    torch.testing.assert_close(found, expected)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from([1.0, 2.0, 5.0]))
def test_a_map_stays_in_its_range_and_a_constant_one_as_it_is(seed, power):
    maps, embeddings = draw(1, 2, 3, 4, seed=seed), draw(1, 4, 3, 4, seed=seed + 1)
    maps[:, 1] = 0.25
    found = propagate(maps, embeddings, power=power)
    assert found[:, 0].min() >= maps[:, 0].min() - 1e-6
    assert found[:, 0].max() <= maps[:, 0].max() + 1e-6
    torch.testing.assert_close(found[:, 1], maps[:, 1])


def test_memory_of_a_large_photograph_is_a_block(monkeypatch: pytest.MonkeyPatch):
    """No product of torch is larger than a block: the matrix of all cells squared would take 400 MB."""
    largest = 0
    original = torch.Tensor.clamp_

    def clamp_(self, *args, **kwargs):
        nonlocal largest
        largest = max(largest, self.numel() * 4)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, "clamp_", clamp_)
    propagate(draw(1, 1, 100, 100), draw(1, 2, 100, 100))
    assert 0 < largest <= propagation.BLOCK_BYTES


def test_no_map_and_half_precision():
    assert propagate(torch.zeros(1, 0, 2, 2), draw(1, 3, 2, 2)).shape == (1, 0, 2, 2)
    maps, embeddings = draw(1, 2, 3, 3).abs(), draw(1, 4, 3, 3)
    with torch.autocast("cpu", torch.bfloat16):
        found = propagate(maps, embeddings)
    torch.testing.assert_close(found, propagate(maps, embeddings))
    assert propagate(maps.half(), embeddings.half()).dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"power": 0.0}, "propagation_power=0.0: give a number above 0"),
        ({"power": float("inf")}, "propagation_power=inf"),
        ({"steps": -1}, "propagation_steps=-1"),
        ({"affinity": torch.ones(1, 4, 5)}, r"affinity=\(1, 4, 5\): give \(1, 4, 4\)"),
        ({"embeddings": torch.ones(1, 3, 2, 3)}, r"embeddings=\(1, 3, 2, 3\): give \(1, D, 2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        propagate(torch.ones(1, 1, 2, 2), **{"embeddings": torch.ones(1, 3, 2, 2), **arguments})


def test_propagation_by_relations_takes_the_place_of_the_embeddings():
    maps, embeddings, keys = draw(2, 3, 2, 4), draw(2, 5, 2, 4, seed=1), draw(2, 7, 2, 4, seed=2)
    rows = draw(2, 8, 2, 4, seed=3).abs()
    assert torch.equal(propagate_by("cosine", maps, embeddings, None, power=3), propagate(maps, embeddings, power=3))
    assert torch.equal(propagate_by("keys", maps, embeddings, keys, power=3), propagate(maps, keys, power=3))
    expected = torch.zeros(2, 3, 8)
    for image in range(2):
        for cell in range(8):
            row = rows[image].flatten(1)[:, cell]  # what is in the cell
            expected[image, :, cell] = (maps[image].flatten(1) * row).sum(1) / row.sum()
    found = propagate_by("attention", maps, embeddings, rows)
    torch.testing.assert_close(found.flatten(2), expected)
    with pytest.raises(ArgumentError, match=r"relation=None: 'keys' needs it"):
        propagate_by("keys", maps, embeddings, None)


def test_rows_of_the_mirror_image_propagate_the_mirrored_map():
    maps, rows = draw(2, 3, 2, 4), draw(2, 8, 2, 4, seed=3).abs()
    expected = propagate_by("attention", maps, maps, rows).flip(3)
    torch.testing.assert_close(propagate_by("attention", maps.flip(3), maps, mirror_rows(rows)), expected)
    assert torch.equal(mirror_rows(mirror_rows(rows)), rows)
