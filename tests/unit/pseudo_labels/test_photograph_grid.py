"""Maps of crops on the grids of their photographs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rca_lightning.pseudo_labels.attention_store import crop_maps_to_grids, grid_size


@pytest.mark.parametrize(
    ("size", "cells", "expected"),
    [((375, 500), 64, (48, 64)), ((500, 375), 64, (64, 48)), ((7, 1000), 64, (1, 64)), ((5, 5), 3, (3, 3))],
)
def test_grid_has_the_aspect_of_the_photograph(size, cells, expected):
    assert grid_size(size, cells) == expected


def bilinear(plane: np.ndarray, x: float, y: float) -> float:
    """Value at (x, y) in cells from the corner, cells beyond the border being like those at it."""
    column, row = x - 0.5, y - 0.5
    left, above = math.floor(column), math.floor(row)
    value = 0.0
    for r, c in ((above, left), (above, left + 1), (above + 1, left), (above + 1, left + 1)):
        weight = (1 - abs(row - r)) * (1 - abs(column - c))
        value += weight * plane[np.clip(r, 0, plane.shape[0] - 1), np.clip(c, 0, plane.shape[1] - 1)]
    return value


def by_hand(plane: np.ndarray, window: np.ndarray, size, crop, cells: int) -> np.ndarray:
    height, width = grid_size(size, cells)
    found = np.zeros((cells, cells))
    backward = np.linalg.inv(np.vstack([window, [0, 0, 1]]))
    for row in range(height):
        for column in range(width):
            point = ((column + 0.5) * size[1] / width, (row + 0.5) * size[0] / height, 1)
            x, y, _ = backward @ point
            if 0 <= x <= crop[1] and 0 <= y <= crop[0]:
                found[row, column] = bilinear(plane, x / crop[1] * plane.shape[1], y / crop[0] * plane.shape[0])
    return found / found.max() if found.max() > 0 else found


WINDOWS = {
    "zoomed in": [[0.5, 0.0, 10.3], [0.0, 0.5, 21.7]],
    "mirrored": [[-0.7, 0.0, 71.0], [0.0, 0.8, 3.0]],
    "padded": [[3.0, 0.0, -20.0], [0.0, 3.1, -33.0]],
    "turned": [[0.0, 1.1, 2.0], [-0.9, 0.0, 60.0]],
}


def test_against_a_loop_over_cells():
    generator = np.random.default_rng(0)
    crop, cells = (40, 48), 16
    sizes = [(60, 80), (80, 60), (33, 80), (64, 64)]
    planes, windows = generator.random((4, 5, 6)), np.array(list(WINDOWS.values()))
    found = crop_maps_to_grids(torch.from_numpy(planes), torch.from_numpy(windows), sizes, crop=crop, cells=cells)
    assert found.dtype == torch.float32
    for index, size in enumerate(sizes):
        expected = by_hand(planes[index], windows[index], size, crop, cells)
        assert (expected > 0).sum() > 0
        np.testing.assert_allclose(found[index].numpy(), expected, atol=2e-5)


def test_peak_in_the_padding_has_no_say():
    plane = torch.zeros(1, 4, 4)
    plane[0, 0, 0], plane[0, 3, 3] = 5.0, 0.5
    # The crop of 8 pixels shows the photograph of 4 in its lower right quarter.
    window = torch.tensor([[[1.0, 0.0, -4.0], [0.0, 1.0, -4.0]]])
    found = crop_maps_to_grids(plane, window, [(4, 4)], crop=(8, 8), cells=4)
    assert found.max() == 1.0
    assert found[0, 3, 3] == 1.0
    assert found[0, 0, 0] == 0.0


@pytest.mark.parametrize("plane", [torch.zeros(1, 3, 3), torch.full((1, 3, 3), float("nan"))])
def test_no_activation_stays_none(plane: torch.Tensor):
    window = torch.tensor([[[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]])
    assert torch.count_nonzero(crop_maps_to_grids(plane, window, [(6, 6)], crop=(6, 6), cells=4)) == 0


def test_no_map_at_all():
    assert crop_maps_to_grids(torch.zeros(0, 2, 2), torch.zeros(0, 2, 3), [], crop=(8, 8), cells=4).shape == (0, 4, 4)
