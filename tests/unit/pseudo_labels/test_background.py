"""From maps to labels, pixel by pixel."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.labels import background_score, threshold_background


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


def test_a_threshold_for_each_pixel():
    found = threshold_background(torch.tensor([[[0.5, 0.5]]]), torch.tensor([[0.4, 0.6]]))
    assert found.tolist() == [[1, 0]]


def test_power_score_of_the_strongest_map():
    maps = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    found = background_score(maps, background="power", power=3.5)
    for row in range(4):
        for column in range(5):
            assert float(found[row, column]) == pytest.approx((1 - max(maps[:, row, column].tolist())) ** 3.5, rel=1e-4)


def test_power_score_of_a_map_rounded_above_one_is_zero():
    assert background_score(torch.tensor([[[1.0001]]]), background="power", power=0.3).tolist() == [[0.0]]


@pytest.mark.parametrize(("power", "level"), [(2, 0.38), (4, 0.28), (8, 0.19), (16, 0.13)])
def test_power_is_the_fixed_threshold_that_the_docstring_tells(power, level):
    maps = torch.tensor([[[level - 0.01, level + 0.01]]])
    score = background_score(maps, background="power", power=power)
    assert threshold_background(maps, score).tolist() == [[0, 1]]


def test_without_maps_the_power_background_is_sure():
    assert background_score(torch.zeros(0, 1, 2), background="power").tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"background": "otsu"}, "background='otsu'"),
        ({"rule": "power"}, "rule='power': renamed in 0.2; give background="),
        ({"threshold": 1.5}, "threshold=1.5"),
        ({"background": "power", "power": 0.0}, "power=0.0"),
        ({"background": "power", "power": float("nan")}, "power=nan"),
    ],
)
def test_refused_settings(options, message):
    with pytest.raises(ArgumentError, match=message):
        background_score(torch.zeros(1, 2, 2), **options)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (torch.zeros(2, 2), r"maps='\(2, 2\) torch.float32': give floating point \(K, H, W\)"),
        (torch.zeros(1, 2, 2, dtype=torch.int64), "maps='.* torch.int64'"),
        (torch.tensor([[[0.0, float("nan")]]]), "maps='1 of 2 values NaN or infinite'"),
        (torch.tensor([[[0.0, float("inf")]]]), "maps='1 of 2 values NaN or infinite'"),
        (torch.tensor([[[0.0, 7.0]]]), r"maps='values from 0 to 7': give values in \[0, 1\]"),
        (torch.tensor([[[-0.1, 0.0]]]), "maps='values from -0.1 to 0'"),
    ],
)
def test_refused_maps(maps, message):
    with pytest.raises(ArgumentError, match=message):
        background_score(maps)
