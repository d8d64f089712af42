"""Outlines: whether the region is what lies inside, corner by corner."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.extra.numpy import array_shapes, arrays
from tests.unit.exchange.exchange_readers import inside, region_of

from rca_lightning.exchange.polygons import trace_polygons


def components(region: np.ndarray) -> list[set[tuple[int, int]]]:
    """Connected components by flooding; pixels that touch at a corner are connected."""
    left = {(int(y), int(x)) for y, x in zip(*np.nonzero(region), strict=True)}
    found = []
    for start in sorted(left):
        if start not in left:
            continue
        component, edge = set(), [start]
        while edge:
            y, x = edge.pop()
            if (y, x) in left:
                left.remove((y, x))
                component.add((y, x))
                edge += [(y + down, x + right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
        found.append(component)
    return found


def drawn(polygon: np.ndarray, shape: tuple[int, int]) -> set[tuple[int, int]]:
    return {(int(y), int(x)) for y, x in zip(*np.nonzero(region_of(polygon, shape)), strict=True)}


def winding(polygon: list[list[int]], x: float, y: float) -> int:
    """How often the outline goes around a point: crossings of a ray to the right, with their signs."""
    number = 0
    for (x0, y0), (x1, y1) in zip(polygon, polygon[1:] + polygon[:1], strict=True):
        if x0 == x1 and x0 > x and min(y0, y1) < y < max(y0, y1):
            number += 1 if y1 > y0 else -1
    return number


@settings(max_examples=100, deadline=None)
@given(arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=8)))
def test_each_component_is_what_its_polygon_encloses(region):
    polygons = trace_polygons(region)
    expected = components(region)
    assert [drawn(polygon, region.shape) for polygon in polygons] == expected
    for polygon, component in zip(polygons, expected, strict=True):
        steps = np.roll(polygon, -1, axis=0) - polygon
        assert ((steps == 0).sum(axis=1) == 1).all()  # along the edges of pixels, no corner twice in a row
        for y in range(region.shape[0]):
            for x in range(region.shape[1]):
                assert winding(polygon.tolist(), x + 0.5, y + 0.5) == ((y, x) in component)


@pytest.mark.parametrize(
    ("rows", "corners"),
    [
        (["#"], [[0, 0], [1, 0], [1, 1], [0, 1]]),
        (["#.", ".#"], [[0, 0], [1, 0], [1, 1], [2, 1], [2, 2], [1, 2], [1, 1], [0, 1]]),
        # The cut of a hole goes up to the edge above.
        (
            ["###", "#.#", "###"],
            [[0, 0], [1, 0], [1, 1], [1, 2], [2, 2], [2, 1], [1, 1], [1, 0], [3, 0], [3, 3], [0, 3]],
        ),
    ],
)
def test_corners(rows, corners):
    region = np.array([[sign == "#" for sign in row] for row in rows])
    (polygon,) = trace_polygons(region)
    assert polygon.tolist() == corners


def test_nothing_has_no_outline():
    assert trace_polygons(np.zeros((3, 4), dtype=np.bool_)) == []
    assert trace_polygons(np.zeros((0, 4), dtype=np.bool_)) == []


def test_reader_of_these_tests_is_even_odd():
    nested = [(0, 0), (4, 0), (4, 4), (0, 4), (0, 0), (1, 1), (3, 1), (3, 3), (1, 3), (1, 1)]
    assert inside(nested, 0.5, 0.5)
    assert not inside(nested, 2.5, 2.5)


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_noise_has_as_many_polygons_as_components(share):
    region = np.random.default_rng(0).random((18, 24)) < share
    polygons = trace_polygons(region)
    assert len(polygons) == len(components(region))
    total = np.zeros(region.shape, dtype=np.int64)
    for polygon in polygons:
        total += region_of(polygon, region.shape)
    assert np.array_equal(total, region)
