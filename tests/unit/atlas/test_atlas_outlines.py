"""Regions found anew in a photograph, and their crops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.bright_network import Brightness

from rca_lightning.atlas.crops import crop_box, draw_crop
from rca_lightning.atlas.outlines import ImageRegions
from rca_lightning.rca.regions import pseudo_regions

YELLOW = np.array([255, 221, 0])


@pytest.mark.parametrize(("rule", "threshold"), [("fixed", 0.4), ("mean", 0.5), ("quantile", 0.7)])
def test_outline_is_the_pseudo_region(rule, threshold):
    image = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(1))
    network = Brightness().eval()
    found = ImageRegions(network, image, torch.ones(1), region_threshold=threshold, region_rule=rule)
    expected = pseudo_regions(image.mean(0)[None, None], torch.ones(1, 1), threshold, rule)[0, 0]
    assert np.array_equal(found.of_class(0), expected.numpy())


def test_outline_is_cut_from_the_attention_where_regions_are():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(4))
    network = Brightness(2, attention=True).eval()
    for region_map in ("coarse", "attention"):
        found = ImageRegions(network, image, torch.ones(2), region_map=region_map)
        for label in (0, 1):
            expected = pseudo_regions(network(image[None]).region_cam(region_map), torch.ones(1, 2))[0, label]
            assert np.array_equal(found.of_class(label), expected.numpy())
    assert not np.array_equal(found.of_class(0), ImageRegions(network, image, torch.ones(2)).of_class(0))


def test_outline_is_drawn_for_a_tag_that_was_taken_away_and_not_on_a_constant_map():
    image = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))
    assert ImageRegions(Brightness().eval(), image, torch.zeros(1)).of_class(0).any()
    assert ImageRegions(Brightness().eval(), torch.ones(3, 8, 8), torch.ones(1)).of_class(0) is None


def test_outline_has_the_size_of_the_photograph_whatever_the_network_sees():
    network = Brightness().eval()
    image = torch.zeros(3, 20, 40)
    image[:, 5:10, 20:30] = 1
    mask = ImageRegions(network, image, torch.ones(1), long_side=20).of_class(0)
    assert network.seen == [(1, 3, 10, 20)]
    assert mask.shape == (20, 40)
    overlap = mask & (image[0].numpy() > 0)
    assert overlap.sum() / (mask | (image[0].numpy() > 0)).sum() > 0.6


def test_background_is_the_empty_tile_that_resembles_the_remembered_one():
    # Four tiles of different colour, all dark; the object is the bright middle.
    image = -torch.ones(3, 12, 12)
    colours = torch.tensor([[-3.0, -1, -1], [-1.0, -3, -1], [-1.0, -1, -3], [-2.0, -2, -5]])
    for tile, colour in enumerate(colours):
        top, left = 6 * (tile // 2), 6 * (tile % 2)
        image[:, top : top + 6, left : left + 6] = colour[:, None, None]
    image[:, 4:8, 4:8] = 5
    found = ImageRegions(Brightness().eval(), image, torch.ones(1))
    for tile, colour in enumerate(colours):
        mask = found.of_background(F.normalize(colour, dim=0))
        expected = np.zeros((12, 12), dtype=bool)
        top, left = 6 * (tile // 2), 6 * (tile % 2)
        expected[top : top + 6, left : left + 6] = True
        expected[4:8, 4:8] = False
        assert np.array_equal(mask, expected)
    assert ImageRegions(Brightness().eval(), image, torch.zeros(1)).of_background(colours[0]) is None


@pytest.mark.parametrize("seed", range(20))
def test_crop_holds_the_region_and_lies_in_the_photograph(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(50, 200, size=2)
    mask = np.zeros((height, width), dtype=bool)
    top, left = rng.integers(0, height - 5), rng.integers(0, width - 5)
    mask[top : top + rng.integers(1, 60), left : left + rng.integers(1, 60)] = True
    first, start, last, end = crop_box(mask)
    assert mask[first:last, start:end].sum() == mask.sum()
    assert 0 <= first < last <= height
    assert 0 <= start < end <= width
    rows, columns = np.nonzero(mask)
    longer = max(np.ptp(rows), np.ptp(columns)) + 1
    side = max(longer + 2 * round(longer * 0.15), 48)
    assert (last - first, end - start) == (min(side, height), min(side, width))


def test_crop_is_not_distorted():
    image = np.full((60, 180, 3), 90, dtype=np.uint8)
    image[10:50, 20:60] = 200  # a square
    for mask in (None, np.ones((60, 180), dtype=bool)):
        crop = draw_crop(image, mask, 90)
        bright = np.nonzero(np.all(np.abs(crop.astype(int) - 200) < 20, axis=2))
        extents = [np.ptp(axis) + 1 for axis in bright]
        assert abs(extents[0] - extents[1]) <= 1
        assert extents[0] == pytest.approx(20, abs=2)
        assert np.all(crop[:29] == 238)  # the photograph is thrice as wide as high
        assert np.all(crop[-29:] == 238)


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (255, 221, 0), (128, 128, 128)])
def test_outline_is_seen_on_any_photograph(colour):
    image = np.full((100, 100, 3), colour, dtype=np.uint8)
    mask = np.zeros((100, 100), dtype=bool)
    mask[30:70, 30:70] = True
    crop = draw_crop(image, mask, 100).astype(int)
    row = crop[50]
    yellow = np.abs(row - YELLOW).max(axis=1) < 40
    dark = row.max(axis=1) < 100
    middle = len(row) // 2
    assert np.abs(row[middle] - colour).max() <= 1  # inside nothing changes
    assert np.abs(row[2] - 0.7 * np.array(colour)).max() <= 1  # outside is darker
    for side in (slice(0, middle), slice(middle, None)):
        assert dark[side].any()
        assert yellow[side].any()
