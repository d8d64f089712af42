"""Normalisation and augmentation."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.data.transforms import Pixels, TrainAugmentation, normalise
from rca_lightning.errors import ArgumentError


def augmentation(**changed: object) -> TrainAugmentation:
    arguments: dict = {"crop_size": 32, "scale": (1.0, 2.0), "flip": True, "color_jitter": 0.3, **changed}
    return TrainAugmentation(**arguments)


def photo(height: int = 40, width: int = 60) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 256, (height, width, 3), dtype=np.uint8)


def test_normalise_against_numpy() -> None:
    image = photo()
    expected = ((image / 255.0 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)).transpose(2, 0, 1)
    tensor = normalise(Pixels(image))
    assert tensor.dtype == torch.float32
    assert tensor.is_contiguous()
    np.testing.assert_allclose(tensor.numpy(), expected, atol=1e-5)


def test_same_seed_same_crop_whatever_was_drawn_before() -> None:
    first, second = augmentation(), augmentation()
    second(Pixels(photo()), seed=(9, 9, 9))
    a, b = first(Pixels(photo()), seed=(1, 2, 3)), second(Pixels(photo()), seed=(1, 2, 3))
    np.testing.assert_array_equal(a.image, b.image)
    third = pickle.loads(pickle.dumps(first))(Pixels(photo()), seed=(1, 2, 3))
    np.testing.assert_array_equal(a.image, third.image)
    for seed in ((2, 2, 3), (1, 3, 3), (1, 2, 4)):
        assert (first(Pixels(photo()), seed=seed).image != a.image).any()


def test_augmentation_leaves_global_generators_alone() -> None:
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 - the global generator is what is being tested
    before = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    augmentation()(Pixels(photo()), seed=(1, 2, 3))
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])  # noqa: NPY002


def test_padding_is_mean_colour_void_and_not_salient() -> None:
    image = photo(20, 60)
    given = Pixels(image, mask=np.ones((20, 60), np.uint8), saliency=np.ones((20, 60), np.float32))
    out = augmentation(scale=(1.0, 1.0))(given, seed=(0,))
    # Long side 60 becomes 32, so the short one becomes 11: 21 of 32 rows are padding.
    padded = out.mask == 255
    assert padded.sum() == 21 * 32
    np.testing.assert_array_equal(out.saliency, np.where(padded, 0, 1))
    tensor = normalise(out)
    assert torch.count_nonzero(tensor[:, torch.from_numpy(padded)]) == 0
    assert tensor[:, torch.from_numpy(~padded)].std() > 0.1


def test_mask_and_saliency_move_with_the_image() -> None:
    rows, columns = np.mgrid[0:64, 0:64]
    mask = (rows // 8 * 8 + columns // 8).astype(np.uint8)  # 64 blocks, each with a number of its own
    image = np.repeat(mask[..., None] * 3, 3, axis=-1).astype(np.uint8)
    given = Pixels(image, mask=mask, saliency=mask.astype(np.float32) / 64)
    for number in range(10):
        out = augmentation(color_jitter=0, scale=(2.0, 2.0))(given, seed=(number,))
        # Long side 64 = the original: no interpolation, so image, mask and map agree exactly.
        np.testing.assert_array_equal(out.image[..., 0], out.mask * 3)
        np.testing.assert_array_equal(out.saliency, out.mask.astype(np.float32) / 64)


def test_flip_happens_in_half_of_the_cases_and_can_be_switched_off() -> None:
    ramp = np.repeat(np.arange(64, dtype=np.uint8)[None, :, None].repeat(64, 0), 3, axis=-1) * 3

    def flipped(flip: bool) -> np.ndarray:
        augment = augmentation(flip=flip, color_jitter=0)
        out = [augment(Pixels(ramp), seed=(number,)).image[16, :, 0] for number in range(200)]
        return np.array([int(row[-1]) < int(row[0]) for row in out])

    assert 70 < flipped(True).sum() < 130
    assert flipped(False).sum() == 0


def test_choices_are_not_tied_to_each_other() -> None:
    # Position, flip and scale come from one stream: with a stream each, all from one seed, they would be equal.
    rows, columns = np.mgrid[0:64, 0:64]
    image = np.stack([columns * 3, rows * 3, np.zeros_like(rows)], axis=-1).astype(np.uint8)
    augment = augmentation(color_jitter=0)
    drawn = []
    for number in range(300):
        row = augment(Pixels(image), seed=(number,)).image[16].astype(int)
        drawn.append((row[-1, 0] < row[0, 0], row[:, 0].mean(), row[:, 1].mean(), abs(row[-1, 0] - row[0, 0])))
    correlation = np.corrcoef(np.array(drawn, dtype=float).T)
    assert np.abs(correlation[np.triu_indices(4, k=1)]).max() < 0.2


def test_scale_bounds_the_long_side() -> None:
    ramp = np.repeat(np.arange(120, dtype=np.uint8)[None, :, None].repeat(120, 0), 3, axis=-1) * 2
    augment = augmentation(color_jitter=0, flip=False, scale=(1.0, 2.0))
    spans = [float(np.ptp(augment(Pixels(ramp), seed=(number,)).image[16, :, 0])) for number in range(100)]
    # A crop of 32 sees the whole ramp (238 levels) at scale 1 and half of it at scale 2.
    assert min(spans) >= 110
    assert max(spans) > 200
    assert min(spans) < 140


def test_crop_is_never_all_void() -> None:
    mask = np.full((200, 200), 255, np.uint8)
    mask[150:153, 7:10] = 4
    augment = augmentation(scale=(4.0, 8.0))
    for number in range(20):
        out = augment(Pixels(photo(200, 200), mask=mask), seed=(number,))
        assert out.mask.shape == (32, 32)
        assert (out.mask == 4).any()


def test_mask_that_is_all_void_still_gives_a_crop() -> None:
    out = augmentation()(Pixels(photo(), mask=np.full((40, 60), 255, np.uint8)), seed=(0,))
    assert out.image.shape == (32, 32, 3)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 300), (33, 17), (400, 20)])
def test_any_shape_gives_the_crop_size(height: int, width: int) -> None:
    out = augmentation()(Pixels(photo(height, width), mask=np.zeros((height, width), np.uint8)), seed=(0,))
    assert out.image.shape == (32, 32, 3)
    assert out.mask.shape == (32, 32)
    assert (out.mask == 0).any()


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop_size", 8), ("scale", (0.0, 1.0)), ("scale", (2.0, 1.0)), ("color_jitter", -0.1), ("color_jitter", 1.1)],
)
def test_bad_arguments_are_named(name: str, value: object) -> None:
    with pytest.raises(ArgumentError, match=name):
        augmentation(**{name: value})
