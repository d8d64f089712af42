"""The walk over features against the dense matrix it stands for."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.propagation import random_walk


def random_case(batch: int = 2, height: int = 5, width: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(batch, 3, height, width, generator=generator)
    return maps, torch.randn(batch, 7, height, width, generator=generator)


def dense_transition(features: torch.Tensor, radius: float, beta: float) -> torch.Tensor:
    """(HW, HW) in float64, entry by entry."""
    _, height, width = features.shape
    vectors = features.double().permute(1, 2, 0).reshape(height * width, -1).tolist()
    matrix = torch.zeros(height * width, height * width, dtype=torch.float64)
    for start, first in enumerate(vectors):
        for end, second in enumerate(vectors):
            if math.dist(divmod(start, width), divmod(end, width)) <= radius:
                cosine = (
                    sum(a * b for a, b in zip(first, second, strict=True)) / math.hypot(*first) / math.hypot(*second)
                )
                matrix[start, end] = max(cosine, 0) ** beta
        matrix[start] /= matrix[start].sum()
    return matrix


@pytest.mark.parametrize(("radius", "beta", "steps"), [(1, 1.0, 1), (1.5, 2.0, 3), (9, 0.5, 4)])
def test_against_the_dense_matrix(radius, beta, steps):
    maps, features = random_case()
    found = random_walk(maps, features, radius=radius, beta=beta, steps=steps)
    for index in range(2):
        power = torch.linalg.matrix_power(dense_transition(features[index], radius, beta), steps)
        expected = (power @ maps[index].double().flatten(1).T).T.view(3, 5, 4)
        torch.testing.assert_close(found[index].double(), expected, atol=1e-5, rtol=1e-4)


def test_constant_maps_stay():
    _, features = random_case()
    flat = torch.full((2, 1, 5, 4), 0.6)
    torch.testing.assert_close(random_walk(flat, features), flat)


def test_nothing_crosses_between_unlike_features():
    features = torch.zeros(1, 2, 6, 8)
    features[:, 0, :, :4], features[:, 1, :, 4:] = 1.0, 1.0
    maps = torch.zeros(1, 1, 6, 8)
    maps[0, 0, 2, 1] = 1.0
    found = random_walk(maps, features, radius=3, steps=40)
    assert (found[..., 4:] == 0).all()
    assert (found[..., :4] > 0).all()
    # From one cell the evidence spreads over its side: after many steps as evenly as cells have neighbours.
    assert found[..., :4].max() < 0.1


def test_a_seed_fills_its_object_against_the_background():
    rows, columns = torch.meshgrid(torch.arange(12), torch.arange(12), indexing="ij")
    inside = (rows > 2) & (rows < 9) & (columns > 3) & (columns < 10)
    noise = torch.rand(4, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.3
    features = torch.stack([inside, ~inside, inside, ~inside]).float() + noise
    seed = torch.zeros(12, 12)
    seed[3:6, 4:7] = 0.9
    scores = torch.stack([(1 - seed) ** 16 * (~inside) + 0.15 * inside * (seed == 0), seed])
    before = seed > scores[0]
    found = random_walk(scores[None], features[None], radius=3, steps=8)[0]
    after = found[1] > found[0]
    assert before.sum() == 9
    assert (after & inside).sum() / (after | inside).sum() > 0.9


def test_greater_beta_forbids_more():
    features = torch.tensor([[1.0, 0.8], [0.0, 0.6]])[None, :, None]  # cosine 0.8
    maps = torch.tensor([[[[1.0, 0.0]]]])
    reached = [float(random_walk(maps, features, radius=1, beta=beta, steps=1)[..., 1]) for beta in (1.0, 4.0, 16.0)]
    assert reached == pytest.approx([0.8**beta / (1 + 0.8**beta) for beta in (1, 4, 16)], rel=1e-5)


def test_scale_of_the_features_does_not_matter():
    maps, features = random_case()
    torch.testing.assert_close(random_walk(maps, features * 1e3), random_walk(maps, features))


def test_cells_without_features_keep_their_values():
    maps, features = random_case()
    features[:, :, 2, 1] = 0
    found = random_walk(maps, features)
    assert torch.equal(found[:, :, 2, 1], maps[:, :, 2, 1])
    assert found.isfinite().all()


def test_mirrored_and_reordered_with_its_input():
    maps, features = random_case()
    found = random_walk(maps, features)
    torch.testing.assert_close(random_walk(maps.flip(3), features.flip(3)).flip(3), found)
    torch.testing.assert_close(random_walk(maps.flip(2), features.flip(2)).flip(2), found)
    torch.testing.assert_close(random_walk(maps[:, [1, 2, 0]], features.flip(1)), found[:, [1, 2, 0]])


def test_nothing_to_do():
    maps, features = random_case()
    assert torch.equal(random_walk(maps, features, steps=0), maps)
    assert random_walk(maps[:, :0], features).shape == (2, 0, 5, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.5}, "radius=0.5"),
        ({"beta": 0.0}, "beta=0.0"),
        ({"steps": -1}, "steps=-1"),
        ({"features": torch.zeros(2, 7, 5, 5)}, r"features=\(2, 7, 5, 5\): the maps are 5 x 4"),
        ({"features": torch.zeros(1, 7, 5, 4)}, r"features=\(1, 7, 5, 4\): there are maps for 2 images"),
        ({"features": torch.zeros(7, 5, 4)}, r"features=\(7, 5, 4\): give \(B, D, H, W\)"),
        ({"features": torch.full((2, 1, 5, 4), float("nan"))}, "features='40 of 40 values NaN"),
        ({"maps": torch.full((2, 1, 5, 4), float("nan"))}, "maps='40 of 40 values NaN"),
    ],
)
def test_refused(options, message):
    maps, features = random_case()
    with pytest.raises(ArgumentError, match=message):
        random_walk(**({"maps": maps, "features": features} | options))


@pytest.mark.parametrize("radius", [1.0, 2.3, 9.0])
def test_rows_of_an_affinity_are_walked_as_by_a_loop(radius):
    maps, _ = random_case()
    batch, _, height, width = maps.shape
    places = [(y, x) for y in range(height) for x in range(width)]
    affinity = torch.rand(batch, len(places), len(places), generator=torch.Generator().manual_seed(3))
    affinity[0, 3] = 0  # reads nothing, so it keeps its values
    expected = maps.double().flatten(2).clone()
    for image in range(batch):
        dense = torch.zeros(len(places), len(places), dtype=torch.float64)
        for i, one in enumerate(places):
            for j, other in enumerate(places):
                if (one[0] - other[0]) ** 2 + (one[1] - other[1]) ** 2 <= radius**2:
                    dense[i, j] = affinity[image, i, j]
            if not dense[i].any():
                dense[i, i] = 1
            dense[i] /= dense[i].sum()
        for _ in range(3):
            expected[image] = expected[image] @ dense.T
    rows = affinity.transpose(1, 2).reshape(batch, len(places), height, width)  # in each cell its row
    found = random_walk(maps, rows, radius=radius, steps=3, by_rows=True)
    torch.testing.assert_close(found.flatten(2).double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_for_other_cells_are_refused():
    with pytest.raises(ArgumentError, match=r"features=\(1, 3, 2, 2\): give 4 channels by rows"):
        random_walk(torch.zeros(1, 1, 2, 2), torch.zeros(1, 3, 2, 2), by_rows=True)
