"""Reading photographs, masks and saliency maps."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.data.images import check_same_size, image_size, read_image, read_mask, read_saliency
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError

GRID = np.arange(24, dtype=np.uint8).reshape(4, 6) * 10


def test_rgb_is_read_as_it_is(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, pixels)


def test_grey_becomes_three_equal_channels(tmp_path: Path) -> None:
    Image.fromarray(GRID).save(tmp_path / "a.png")
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), np.stack([GRID] * 3, axis=-1))


def test_16_bit_grey_is_scaled(tmp_path: Path) -> None:
    values = np.array([[0, 128, 129, 257, 32896, 65535]], dtype=np.uint16)
    Image.fromarray(values).save(tmp_path / "a.png")
    expected = np.rint(values / 257.0)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png")[..., 0], expected)


def test_cmyk_jpeg_becomes_rgb(tmp_path: Path) -> None:
    red = Image.new("RGB", (16, 16), (250, 10, 10)).convert("CMYK")
    red.save(tmp_path / "a.jpg", quality=95)
    read = read_image(tmp_path / "a.jpg").reshape(-1, 3).mean(0)
    assert np.abs(read - [250, 10, 10]).max() < 6


@pytest.mark.filterwarnings("error")
def test_palette_and_transparency(tmp_path: Path) -> None:
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    palette.putpalette([9, 8, 7, 200, 100, 50] + [0] * 762)
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=b"\x00\xff")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png"), [[[9, 8, 7], [200, 100, 50]]])
    Image.new("RGBA", (1, 1), (1, 2, 3, 0)).save(tmp_path / "t.png")
    np.testing.assert_array_equal(read_image(tmp_path / "t.png"), [[[1, 2, 3]]])


# What a viewer does for each value of the EXIF tag, after the table in the EXIF standard.
UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
    8: lambda a: np.rot90(a, 1),
}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_carried_out(tmp_path: Path, orientation: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    np.testing.assert_array_equal(read_image(tmp_path / "a.png"), UPRIGHT[orientation](pixels))


@pytest.mark.filterwarnings("error")
def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    Image.fromarray(np.stack([GRID] * 3, -1)).save(tmp_path / "a.jpg", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff")
    assert read_image(tmp_path / "a.jpg").shape == (4, 6, 3)


@pytest.mark.parametrize("kind", ["cut", "noise", "empty", "zeros"])
def test_damaged_images_name_file_and_remedy(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "bad.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file)
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "noise": b"hello", "empty": b"", "zeros": bytes(99)}[kind])
    with pytest.raises(DataError, match=r"bad\.jpg: (cut off or damaged|not an image).*out of the split"):
        read_image(file)


def test_missing_image(tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"gone\.jpg: no such file"):
        read_image(tmp_path / "gone.jpg")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("limit", [20, 10])  # 24 pixels: Pillow warns above the limit and raises above twice of it
def test_decompression_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    Image.fromarray(GRID).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    with pytest.raises(DataError, match=r"a\.png: .*MAX_IMAGE_PIXELS"):
        read_image(tmp_path / "a.png")


def test_float_image_has_no_conversion(tmp_path: Path) -> None:
    Image.fromarray(np.ones((2, 2), dtype=np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_image(tmp_path / "a.tif")


@pytest.mark.parametrize("mode", ["L", "P", "I;16"])
def test_masks_of_every_index_mode(tmp_path: Path, mode: str) -> None:
    values = np.array([[0, 1, 2], [3, 255, 0]])
    image = Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.uint8))
    if mode == "P":
        image.putpalette(list(range(256)) * 3)
    assert image.mode == mode
    image.save(tmp_path / "m.png")
    read = read_mask(tmp_path / "m.png", num_classes=3)
    assert read.dtype == np.uint8
    np.testing.assert_array_equal(read, values)


def test_mask_values_out_of_range_are_named(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 2, 7, 254, 255]], dtype=np.uint8)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"m\.png: values \[7, 254\].*0\.\.2 and 255"):
        read_mask(tmp_path / "m.png", num_classes=2)


def test_16_bit_mask_does_not_wrap_around(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 256, 257]], dtype=np.uint16)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=r"values \[256, 257\]"):
        read_mask(tmp_path / "m.png", num_classes=2)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "LA"])
def test_colour_masks_are_refused(tmp_path: Path, mode: str) -> None:
    Image.new(mode, (4, 4)).save(tmp_path / "m.png")
    with pytest.raises(DataError, match=rf"m\.png: a colour image \({mode}\).*convert its colours"):
        read_mask(tmp_path / "m.png", num_classes=2)


def test_size_mismatch_names_both_sizes() -> None:
    check_same_size((4, 6), (4, 6), image_path=Path("a.jpg"), other_name="the mask m.png")
    with pytest.raises(DataError, match=r"m\.png is 4 x 6 pixels.*a\.jpg is 6 x 4"):
        check_same_size((4, 6), (6, 4), image_path=Path("a.jpg"), other_name="the mask m.png")


def test_saliency_of_8_and_16_bits(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 51, 255]], dtype=np.uint8)).save(tmp_path / "s8.png")
    Image.fromarray(np.array([[0, 13107, 65535]], dtype=np.uint16)).save(tmp_path / "s16.png")
    for name in ("s8.png", "s16.png"):
        read = read_saliency(tmp_path / name)
        assert read.dtype == np.float32
        np.testing.assert_allclose(read, [[0, 0.2, 1]], atol=1e-6)


@pytest.mark.parametrize("turn", [None, 1, 3, 6, 8])
def test_size_is_that_of_the_upright_photograph(tmp_path, turn):
    exif = Image.Exif()
    if turn is not None:
        exif[0x0112] = turn
    path = tmp_path / "photo.jpg"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert image_size(path) == read_image(path).shape[:2] == ((30, 20) if turn in {6, 8} else (20, 30))


def test_more_classes_than_a_mask_holds(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((2, 2), dtype=np.uint8)).save(tmp_path / "m.png")
    assert not read_mask(tmp_path / "m.png", num_classes=254).any()
    with pytest.raises(ArgumentError, match=r"num_classes=255: give at most 254"):
        read_mask(tmp_path / "m.png", num_classes=255)
