"""Overlays and panels, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rca_lightning.data.visualization import denormalise, draw_panel, overlay_maps, overlay_mask

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # ImageNet
COLOURS = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 255: (224, 224, 192)}  # VOC kit


def random_image(height: int = 3, width: int = 4) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_denormalise_undoes_the_normalisation():
    pixels = random_image()
    normalised = torch.tensor((pixels / 255 - np.array(MEAN)) / np.array(STD)).permute(2, 0, 1).float()
    found = denormalise(normalised.requires_grad_())
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


def test_denormalise_clips():
    assert denormalise(torch.full((3, 1, 1), 99.0)).tolist() == [[[255, 255, 255]]]
    assert denormalise(torch.full((3, 1, 1), -99.0)).tolist() == [[[0, 0, 0]]]


def test_overlay_mask_mixes_voc_colours_and_spares_the_background():
    image = random_image(1, 5)
    mask = np.array([list(COLOURS)], dtype=np.uint8)
    found = overlay_mask(image, mask, opacity=0.25)
    assert found.dtype == np.uint8
    for column, (label, colour) in enumerate(COLOURS.items()):
        weight = 0.0 if label == 0 else 0.25
        for channel in range(3):
            expected = (1 - weight) * float(image[0, column, channel]) + weight * colour[channel]
            assert abs(float(found[0, column, channel]) - expected) <= 0.51


def test_overlay_maps_tints_with_the_strongest_class():
    image = random_image(2, 2)
    maps = torch.tensor([[[1.0, 0.2], [0.0, 0.3]], [[0.5, 0.8], [0.0, 0.0]]])
    found = overlay_maps(image, maps, torch.tensor([1, 14]))  # labels 2 and 15
    for row in range(2):
        for column in range(2):
            first, second = float(maps[0, row, column]), float(maps[1, row, column])
            strength, colour = (first, COLOURS[2]) if first >= second else (second, COLOURS[15])
            for channel in range(3):
                dimmed = 0.45 * float(image[row, column, channel])
                expected = dimmed * (1 - 0.5 * strength) + 0.85 * strength * colour[channel]
                assert abs(float(found[row, column, channel]) - min(expected, 255)) <= 0.51


def test_overlay_without_maps_is_the_dimmed_image():
    image = random_image()
    found = overlay_maps(image, torch.zeros(0, 3, 4), torch.zeros(0, dtype=torch.long))
    assert np.abs(found - 0.45 * image).max() <= 0.51


def test_panel_puts_each_picture_in_its_place():
    def plain(colour: int, height: int, width: int) -> np.ndarray:
        return np.full((height, width, 3), colour, dtype=np.uint8)

    # Heights become 20; widths 20 and 40 in the first column, 10 and 20 in the second.
    rows = [[plain(10, 5, 5), plain(20, 40, 20)], [plain(30, 10, 20), plain(40, 20, 20)]]
    panel = draw_panel(rows, ["a", "b"], height=20)
    assert panel.shape == (18 + 2 * 24, 40 + 20 + 3 * 4, 3)
    for (top, left), (height, width), value in [
        ((18, 4), (20, 20), 10),
        ((18, 48), (20, 10), 20),
        ((42, 4), (20, 40), 30),
        ((42, 48), (20, 20), 40),
    ]:
        assert (panel[top : top + height, left : left + width] == value).all()
    assert (panel[18:38, 24:48] == 255).all()  # right of the narrow picture


@pytest.mark.parametrize("column", [0, 1])
def test_panel_draws_its_titles(column):
    picture = np.full((20, 60, 3), 255, dtype=np.uint8)
    left = 4 + 64 * column
    blank = draw_panel([[picture, picture]], ["", ""], height=20)
    titles = ["", ""]
    titles[column] = "mask"
    panel = draw_panel([[picture, picture]], titles, height=20)
    assert (blank == 255).all()
    assert (panel[:18, left : left + 60] < 128).any()
    assert (panel[18:] == 255).all()
