"""From maps to labels, pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.pseudo_labels.background import threshold_background


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.95])
def test_strongest_class_above_the_threshold(threshold):
    maps = torch.randint(0, 21, (4, 6, 7), generator=torch.Generator().manual_seed(0)) / 20
    found = threshold_background(maps, threshold)
    assert found.dtype == torch.uint8
    assert found.shape == (6, 7)
    for row in range(6):
        for column in range(7):
            values = maps[:, row, column].tolist()
            expected = values.index(max(values)) + 1 if max(values) > threshold else 0
            assert int(found[row, column]) == expected


def test_pixel_at_the_threshold_is_background():
    assert threshold_background(torch.tensor([[[0.5, 0.5001]]]), 0.5).tolist() == [[0, 1]]


def test_without_maps_all_is_background():
    found = threshold_background(torch.zeros(0, 2, 3), 0.2)
    assert found.tolist() == [[0, 0, 0]] * 2
    assert found.dtype == torch.uint8


def test_254_classes_fit_below_the_void_label():
    maps = torch.zeros(254, 1, 1)
    maps[253] = 1
    assert threshold_background(maps, 0.5).tolist() == [[254]]
