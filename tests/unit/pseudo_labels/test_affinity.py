"""Affinities from boundaries, their loss and the walk over them, against plain loops in double precision."""

from __future__ import annotations

import itertools
import math
import time

import pytest
import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.affinity import (
    affinity_loss,
    boundary_affinities,
    boundary_walk,
    half_disc,
    line,
    pair_losses,
    walk_class_maps,
)

HEIGHT, WIDTH = 7, 9


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def random_labels(batch: int = 2) -> Tensor:
    drawn = torch.randint(0, 4, (batch, HEIGHT, WIDTH), generator=torch.Generator().manual_seed(3))
    return torch.where(drawn == 3, 255, drawn)


def plain_affinity(boundary: Tensor, start: tuple[int, int], end: tuple[int, int]) -> float:
    """1 minus the highest boundary on the way, looked up a step at a time."""
    rows, columns = end[0] - start[0], end[1] - start[1]
    length = max(abs(rows), abs(columns))
    highest = 0.0
    for k in range(length + 1):
        row, column = (at + math.floor(by * k / length + 0.5) for at, by in zip(start, (rows, columns), strict=True))
        highest = max(highest, float(boundary[row, column]))
    return 1 - highest


def plain_pairs(labels: Tensor, radius: float) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Every unordered pair of cells within the radius, once."""
    cells = [(row, column) for row in range(labels.shape[0]) for column in range(labels.shape[1])]
    return [
        (one, other)
        for number, one in enumerate(cells)
        for other in cells[number + 1 :]
        if math.dist(one, other) <= radius
    ]


def plain_losses(boundary: Tensor, labels: Tensor, radius: float) -> dict[str, list[float]]:
    losses: dict[str, list[float]] = {"background": [], "class": [], "different": []}
    for picture, of_cells in zip(boundary.double(), labels, strict=True):
        for one, other in plain_pairs(of_cells, radius):
            first, second = int(of_cells[one]), int(of_cells[other])
            if 255 in (first, second):
                continue
            affinity = plain_affinity(picture, one, other)
            if first != second:
                losses["different"].append(-math.log(1 - affinity))
            else:
                losses["class" if first else "background"].append(-math.log(affinity))
    return losses


def plain_walk(maps: Tensor, boundary: Tensor, radius: float, beta: float, steps: int) -> Tensor:
    cells = [(row, column) for row in range(maps.shape[1]) for column in range(maps.shape[2])]
    transition = torch.zeros(len(cells), len(cells), dtype=torch.float64)
    for i, one in enumerate(cells):
        for j, other in enumerate(cells):
            if i == j:
                transition[i, j] = 1
            elif math.dist(one, other) <= radius:
                transition[i, j] = plain_affinity(boundary.double(), one, other) ** beta
        transition[i] /= transition[i].sum()
    start = maps.double()
    return (torch.linalg.matrix_power(transition, steps) @ start.flatten(1).T).T.reshape(maps.shape)


@pytest.mark.parametrize("offset", [(0, 3), (2, 1), (1, -2), (3, -5), (4, 4), (7, 2)])
def test_a_line_is_the_same_on_the_way_back(offset):
    there, back = line(offset), line((-offset[0], -offset[1]))
    assert there[0] == (0, 0)
    assert there[-1] == offset
    assert sorted(there) == sorted((row + offset[0], column + offset[1]) for row, column in back)
    steps = [max(abs(a - c), abs(b - d)) for (a, b), (c, d) in itertools.pairwise(there)]
    assert set(steps) == {1}


def test_half_a_disc_has_each_neighbour_or_its_opposite():
    offsets = half_disc(3.5)
    whole = {*offsets, *((-row, -column) for row, column in offsets)}
    assert len(whole) == 2 * len(offsets)
    assert whole == {(y, x) for y in range(-4, 5) for x in range(-4, 5) if 0 < y * y + x * x <= 3.5**2}


def test_affinities_are_those_of_a_loop():
    boundary = random(2, HEIGHT, WIDTH)
    offsets = [(0, 1), (2, -1), (-3, 4), (6, 0), (1, 8)]
    found = boundary_affinities(boundary, offsets)
    assert found.shape == (2, len(offsets), HEIGHT, WIDTH)
    for index, (down, right) in enumerate(offsets):
        for row in range(HEIGHT):
            for column in range(WIDTH):
                end = (row + down, column + right)
                inside = 0 <= end[0] < HEIGHT and 0 <= end[1] < WIDTH
                for picture in range(2):
                    expected = plain_affinity(boundary[picture], (row, column), end) if inside else 0.0
                    assert float(found[picture, index, row, column]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("radius", [1, 2.5, 4])
def test_losses_are_those_of_a_loop(radius):
    boundary, labels = random(2, HEIGHT, WIDTH) * 0.98 + 0.01, random_labels()
    means, counts = pair_losses(boundary, labels, radius=radius)
    expected = plain_losses(boundary, labels, radius)
    for name, losses in expected.items():
        assert int(counts[name]) == len(losses) > 0
        assert float(means[name]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    total = affinity_loss(boundary, labels, radius=radius)
    assert float(total) == pytest.approx(float(means["background"] + means["class"] + 2 * means["different"]) / 4)


def test_a_drawn_part_of_the_offsets_estimates_the_whole_without_bias():
    boundary, labels = random(2, HEIGHT, WIDTH) * 0.98 + 0.01, random_labels()
    whole = affinity_loss(boundary, labels, radius=2)
    generator = torch.Generator().manual_seed(0)
    drawn = [float(affinity_loss(boundary, labels, radius=2, num_offsets=2, generator=generator)) for _ in range(600)]
    error = torch.tensor(drawn).std() / math.sqrt(len(drawn))
    assert error > 0
    assert abs(sum(drawn) / len(drawn) - float(whole)) < 4 * float(error)
    assert float(affinity_loss(boundary, labels, radius=2, num_offsets=99)) == float(whole)


def test_undecided_labels_and_missing_kinds_of_pairs_cost_nothing():
    boundary = random(1, HEIGHT, WIDTH).requires_grad_()
    loss = affinity_loss(boundary, torch.full((1, HEIGHT, WIDTH), 255), radius=3)
    assert float(loss.detach()) == 0
    means, counts = pair_losses(boundary, torch.zeros(1, HEIGHT, WIDTH, dtype=torch.long), radius=3)
    assert [float(means[name].detach()) > 0 for name in ("background", "class", "different")] == [True, False, False]
    assert int(counts["class"]) == int(counts["different"]) == 0
    means["background"].backward()
    assert float(boundary.grad.min()) >= 0
    assert float(boundary.grad.sum()) > 0


def test_certain_boundaries_cost_a_finite_loss():
    labels = random_labels()
    for value in (0.0, 1.0):
        boundary = torch.full((2, HEIGHT, WIDTH), value, requires_grad=True)
        loss = affinity_loss(boundary, labels, radius=2)
        loss.backward()
        assert math.isfinite(float(loss.detach()))
        assert torch.isfinite(boundary.grad).all()


@pytest.mark.parametrize(("radius", "beta", "steps"), [(1, 1.0, 1), (2.5, 4.0, 7), (3, 10.0, 40)])
def test_walk_is_that_of_a_loop(radius, beta, steps):
    maps, boundary = random(2, 3, HEIGHT, WIDTH), random(2, HEIGHT, WIDTH, seed=1)
    walked = boundary_walk(maps, boundary, radius=radius, beta=beta, steps=steps)
    for picture in range(2):
        expected = plain_walk(maps[picture], boundary[picture], radius, beta, steps)
        torch.testing.assert_close(walked[picture].double(), expected, rtol=1e-4, atol=1e-6)


def test_walk_keeps_the_range_and_a_constant_map():
    boundary = random(1, HEIGHT, WIDTH)
    walked = boundary_walk(random(1, 2, HEIGHT, WIDTH, seed=2), boundary, steps=100)
    assert 0 <= float(walked.min()) <= float(walked.max()) <= 1
    constant = torch.full((1, 1, HEIGHT, WIDTH), 0.7)
    torch.testing.assert_close(boundary_walk(constant, boundary), constant, atol=1e-3, rtol=0)
    torch.testing.assert_close(boundary_walk(constant, torch.ones_like(boundary)), constant)


def test_walk_goes_up_to_a_boundary_and_not_beyond():
    boundary = torch.zeros(1, 6, 8)
    boundary[:, :, 4] = 1
    seed = torch.zeros(1, 1, 6, 8)
    seed[..., 2, 1] = 1
    walked = boundary_walk(seed, boundary)[0, 0]
    assert float(walked[:, :4].min()) > 0.01
    assert float(walked[:, 4:].max()) == 0


def test_class_maps_are_walked_on_the_grid_of_the_boundary():
    boundary = torch.zeros(8, 10)
    boundary[:, 5] = 1
    maps = torch.zeros(2, 32, 40)
    maps[0, 10:14, 6:10] = 0.3
    walked = walk_class_maps(maps, boundary)
    assert walked.shape == maps.shape
    assert float(walked[0].max()) == 1
    assert float(walked[0, :, :16].min()) > 0.5  # spread over the whole of its side
    assert float(walked[0, :, 26:].max()) == 0
    assert float(walked[1].max()) == 0
    assert walk_class_maps(maps[:0], boundary).shape == (0, 32, 40)


def test_a_photograph_takes_at_most_three_seconds():
    boundary, maps = random(1, 94, 125), random(1, 3, 94, 125, seed=1)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        started = time.process_time()
        boundary_walk(maps, boundary)
        assert time.process_time() - started < 3
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.5}, "^radius=0.5: give 1 or more"),
        ({"radius": math.inf}, "^radius=inf: give 1 or more"),
        ({"beta": 0.0}, "^beta=0.0: give a number above 0"),
        ({"steps": -1}, "^steps=-1: give 0 or more"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        boundary_walk(torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4), **options)


def test_what_does_not_fit_is_refused():
    maps, boundary = torch.zeros(1, 1, 4, 4), torch.zeros(1, 4, 4)
    with pytest.raises(ArgumentError, match=r"^boundary=.*"):
        boundary_walk(maps, boundary[:, :3])
    with pytest.raises(ArgumentError, match=r"^boundary=.*"):
        boundary_walk(maps, boundary + math.nan)
    with pytest.raises(ArgumentError, match=r"^maps=.*in \[0, 1\]"):
        boundary_walk(maps + 2, boundary)
    with pytest.raises(ArgumentError, match=r"^labels=\(1, 3, 4\): give one for each cell"):
        affinity_loss(boundary, torch.zeros(1, 3, 4, dtype=torch.long))
    with pytest.raises(ArgumentError, match=r"^num_offsets=0: give 1 or more"):
        affinity_loss(boundary, torch.zeros(1, 4, 4, dtype=torch.long), num_offsets=0)
    with pytest.raises(ArgumentError, match=r"^offsets=\[\]: give at least one"):
        boundary_affinities(boundary, [])
