"""Photographs that are decoded smaller, as the crops are smaller anyway."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rca_lightning.data import dataset as reader
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.images import image_size, read_image
from rca_lightning.data.records import Record
from rca_lightning.data.transforms import TrainAugmentation, fitted, reduction, resized_targets

SIZE = (301, 403)  # divisible by nothing


def smooth(height: int, width: int) -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    Image.fromarray(smooth(*SIZE)).save(tmp_path / "a.jpg", quality=95)
    mask = np.zeros(SIZE, dtype=np.uint8)
    mask[50:200, 100:300] = 1
    Image.fromarray(mask).save(tmp_path / "a.png")
    return tmp_path / "a.jpg"


def images(photo: Path, *, scale: tuple[float, float], mask: Path | None = None, **options: Any) -> TaggedImages:
    augmentation = TrainAugmentation(crop_size=64, scale=scale, flip=True, color_jitter=0.0)
    return TaggedImages([Record("a", photo, (0,), mask)], num_classes=1, augmentation=augmentation, **options)


@pytest.fixture
def reductions(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []

    def read(path: Path, *, reduction: int) -> np.ndarray:
        seen.append(reduction)
        return read_image(path, reduction=reduction)

    monkeypatch.setattr(reader, "read_image", read)
    return seen


def test_never_decoded_smaller_than_needed_nor_larger_than_must_be() -> None:
    for height, width in ((301, 403), (403, 301), (64, 64), (1, 900)):
        for long_side in range(1, 450, 7):
            target = fitted((height, width), long_side)
            by = reduction((height, width), target)
            assert by == 1 or (height // by >= target[0] and width // by >= target[1])
            if by < 8:
                assert height // (2 * by) < target[0] or width // (2 * by) < target[1]


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("by", [2, 4, 8])
def test_decoded_size_and_content(tmp_path: Path, by: int, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(smooth(*SIZE)).save(path, quality=95, exif=exif)
    reduced, whole = read_image(path, reduction=by), read_image(path)
    assert reduced.shape[:2] == tuple(-(-side // by) for side in image_size(path))
    height, width = (side // by * by for side in whole.shape[:2])
    left = 0 if orientation == 1 else whole.shape[1] - width  # an incomplete block is at the lower right of the file
    means = whole[:height, left : left + width].reshape(height // by, by, width // by, by, 3).mean(axis=(1, 3))
    found = reduced[: height // by, -(width // by) :] if left else reduced[: height // by, : width // by]
    assert np.abs(means - found).mean() < 2


def test_only_jpeg_is_reduced(tmp_path: Path) -> None:
    Image.fromarray(smooth(*SIZE)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png", reduction=4), smooth(*SIZE))


@pytest.mark.parametrize(("scale", "by"), [((1.0, 1.5), 4), ((2.0, 3.0), 2), ((1.5, 3.0), None)])
def test_same_crops_but_for_rounding(
    photo: Path, reductions: list[int], scale: tuple[float, float], by: int | None
) -> None:
    exact = images(photo, scale=scale, mask=photo.with_suffix(".png"))
    quick = images(photo, scale=scale, mask=photo.with_suffix(".png"), reduced_decoding=True)
    for epoch in range(12):
        one, other = exact[epoch, 0], quick[epoch, 0]
        for name in ("mask", "window", "original_size"):
            np.testing.assert_array_equal(one[name].numpy(), other[name].numpy())
        assert (one["image"] - other["image"]).abs().mean() < 0.06  # standard deviations
    assert other["original_size"].tolist() == list(SIZE)
    assert set(reductions) == ({1, by} if by else {1, 2, 4})


def test_exact_where_nothing_can_be_left_out(photo: Path, reductions: list[int]) -> None:
    exact, quick = images(photo, scale=(4.0, 7.0)), images(photo, scale=(4.0, 7.0), reduced_decoding=True)
    for epoch in range(5):
        np.testing.assert_array_equal(exact[epoch, 0]["image"].numpy(), quick[epoch, 0]["image"].numpy())
    assert set(reductions) == {1}


def test_window_around_a_lonely_pixel_is_cut_from_the_whole_photograph(photo: Path, reductions: list[int]) -> None:
    mask = np.full(SIZE, 255, dtype=np.uint8)
    mask[37, 111] = 1  # lost in the change of size
    Image.fromarray(mask).save(photo.with_suffix(".png"))
    exact = images(photo, scale=(1.0, 1.0), mask=photo.with_suffix(".png"))
    quick = images(photo, scale=(1.0, 1.0), mask=photo.with_suffix(".png"), reduced_decoding=True)
    one, other = exact[0, 0], quick[0, 0]
    assert (one["mask"] == 1).sum() == 1
    np.testing.assert_array_equal(one["image"].numpy(), other["image"].numpy())
    assert reductions[1:] == [4, 1], "ten crops were drawn from one decoding"


@pytest.mark.parametrize("long_side", [64, 250, 403, 700])
def test_resized_like_albumentations(long_side: int) -> None:
    import albumentations as A

    random = np.random.default_rng(long_side)
    image = random.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
    mask, saliency = random.integers(0, 20, SIZE, dtype=np.uint8), random.random(SIZE, dtype=np.float32)
    resize = A.Compose(
        [A.LongestMaxSize(max_size=long_side, area_for_downscale="image")], additional_targets={"saliency": "mask"}
    )
    expected = resize(image=image, mask=mask, saliency=saliency)
    found = resized_targets(image, fitted(SIZE, long_side), mask=mask, saliency=saliency)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
