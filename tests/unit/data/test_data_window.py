"""Where a crop says it lies in the photograph."""

from __future__ import annotations

import random

import albumentations as A
import numpy as np
import pytest

from rca_lightning.data.transforms import ANCHORS, Pixels, TrainAugmentation, scaled, shifted, undone


def coordinates(height: int, width: int) -> np.ndarray:
    """A photograph whose red is the column and whose green is the row, in steps of 2."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([columns * 2, rows * 2, np.full_like(rows, 99)], axis=-1).astype(np.uint8)


def pointed_at(out: Pixels) -> np.ndarray:
    """(x, y) in the photograph of the centre of every crop pixel."""
    rows, columns = np.mgrid[0 : out.image.shape[0], 0 : out.image.shape[1]]
    points = np.stack([columns + 0.5, rows + 0.5, np.ones(rows.shape)], axis=-1)
    return points @ out.window[:2].T


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scale", [(0.3, 0.6), (0.9, 1.1), (1.0, 2.0), (3.0, 5.0)])
@pytest.mark.parametrize(("height", "width"), [(100, 120), (120, 37)])
def test_window_points_at_what_the_crop_shows(height: int, width: int, scale: tuple[float, float], flip: bool) -> None:
    augment = TrainAugmentation(crop_size=48, scale=scale, flip=flip, color_jitter=0)
    given = Pixels(coordinates(height, width))
    mirrored = 0
    for number in range(12):
        out = augment(given, seed=(number,))
        points, shown = pointed_at(out), out.image[..., :2] / 2 + 0.5
        seen = ~out.padded
        # Near the border the resized photograph cannot show coordinates outside the first and last centre.
        assert np.abs(points - shown)[seen].max() < 0.8
        assert abs(np.mean((points - shown)[seen])) < 0.3  # no half pixel in one direction
        inside = (points > 0).all(axis=-1) & (points[..., 0] < width) & (points[..., 1] < height)
        np.testing.assert_array_equal(inside, seen)
        mirrored += out.window[0, 0] < 0
    assert (0 < mirrored < 12) == flip


def test_window_of_the_crop_around_a_labelled_pixel() -> None:
    mask = np.full((110, 120), 255, np.uint8)
    mask[100, 5] = 4
    augment = TrainAugmentation(crop_size=32, scale=(20.0, 24.0), flip=True, color_jitter=0)
    for number in range(6):
        out = augment(Pixels(coordinates(110, 120), mask=mask), seed=(number,))
        np.testing.assert_allclose(pointed_at(out), out.image[..., :2] / 2 + 0.5, atol=1e-9)


def test_anchors_through_a_known_crop_and_flip() -> None:
    # Padded by 3 on the left and 1 above, cut from column 2 to 12, mirrored: column x of the picture is at 8 - x.
    moved = np.stack([8 - ANCHORS[:, 0], ANCHORS[:, 1] + 1], axis=1)
    back = undone(moved)
    np.testing.assert_allclose(back @ (0.0, 1.0, 1.0), (9.0, 0.0, 1.0))  # its left edge is the right edge of column 8
    np.testing.assert_allclose(scaled((50, 40), (100, 120)) @ (40.0, 50.0, 1.0), (120.0, 100.0, 1.0))
    np.testing.assert_allclose(shifted(7, 3) @ (0.0, 0.0, 1.0), (7.0, 3.0, 1.0))


def test_noting_the_window_draws_nothing() -> None:
    """The same steps without anything that is noted give the same pixels."""
    size, sides = 32, list(range(32, 65))
    resize = A.Compose([A.LongestMaxSize(max_size=sides, area_for_downscale="image")])
    crop = A.Compose(
        [
            A.PadIfNeeded(size, size, position="random", fill=0, fill_mask=255),
            A.RandomCrop(size, size),
            A.HorizontalFlip(p=0.5),
            A.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3, hue=0.06, p=0.8),
        ]
    )
    augment = TrainAugmentation(crop_size=size, scale=(1.0, 2.0), flip=True, color_jitter=0.3)
    for number in range(20):
        image = np.random.default_rng(number).integers(0, 256, (30 + number, 60, 3), dtype=np.uint8)
        generator = np.random.default_rng((5, number))
        python_generator = random.Random(int(generator.integers(1 << 62)))
        for step in (resize, crop):
            step.set_random_state(generator, python_generator)
        expected = crop(**resize(image=image))["image"]
        np.testing.assert_array_equal(augment(Pixels(image), seed=(5, number)).image, expected)
