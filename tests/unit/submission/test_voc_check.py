"""Each fault of VOC masks alone, and several at once."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.unit.submission.voc_results import SIZES, labels_of, make_photographs, make_results, save_mask

from rca_lightning.data.classes import voc_palette
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, ResultsError
from rca_lightning.submission.voc import VOC_FOLDER, check_voc

FIRST, SECOND, THIRD = SIZES


@pytest.fixture
def root(tmp_path) -> Path:
    return make_photographs(tmp_path / "VOC2012")


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_results(tmp_path / "out")


def check(folder: Path, root: Path, **options):
    return check_voc(folder.parents[3], list(SIZES), root, **options)


def with_value(labels: np.ndarray, value: int) -> np.ndarray:
    labels[2, 3] = value
    return labels


def cut(path: Path, kept: float) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[content.index(b"IDAT") + 8] ^= 0x10
    path.write_bytes(content)


def with_colours(number: int) -> Callable[[Path], None]:
    """Write an indexed PNG whose palette has only so many colours; Pillow writes none with too few."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    def write(path: Path) -> None:
        labels = labels_of(path.stem)
        head = struct.pack(">IIBBBBB", labels.shape[1], labels.shape[0], 8, 3, 0, 0, 0)  # 3: indexed
        palette = chunk(b"PLTE", voc_palette(number).tobytes()) if number else b""
        rows = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row.tobytes() for row in labels)))
        path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + palette + rows + chunk(b"IEND", b""))

    return write


def replace_by_link(path: Path) -> None:
    target = path.parents[4] / "elsewhere.png"
    path.rename(target)
    path.symlink_to(target)


def replace_by_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def saved_as(mode: str) -> Callable[[Path], None]:
    return lambda path: Image.fromarray(labels_of(path.stem)).convert(mode).save(path, format="PNG")


def grey_palette() -> np.ndarray:
    return np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, axis=1)


# What is done to the mask of the second image, and the line that must tell of it.
FAULTS: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (Path.unlink, f"1 missing: {SECOND}.png"),
    "extra": (lambda p: save_mask(p.parent / "2008_9.png", labels_of(SECOND)), "1 extra: 2008_9.png"),
    "hidden": (lambda p: (p.parent / f".{SECOND}.x.part").touch(), f"1 extra: .{SECOND}.x.part"),
    "folder inside": (lambda p: (p.parent / "more").mkdir(), "1 extra: more"),
    "upper case ending": (
        lambda p: p.rename(p.with_suffix(".PNG")),
        f"1 wrongly named: {SECOND}.PNG (for {SECOND}.png)",
    ),
    "other ending": (lambda p: p.rename(p.with_suffix(".jpg")), f"1 wrongly named: {SECOND}.jpg (for {SECOND}.png)"),
    "turned": (
        lambda p: save_mask(p, labels_of(SECOND).T.copy()),
        f"1 of another size: {SECOND}.png (31 x 17 instead of 17 x 31)",
    ),
    "one pixel less": (lambda p: save_mask(p, labels_of(SECOND)[:-1]), f"{SECOND}.png (17 x 30 instead of 17 x 31)"),
    "class 21": (
        lambda p: save_mask(p, with_value(labels_of(SECOND), 21)),
        f"1 with values above 20: {SECOND}.png (21)",
    ),
    "void": (
        lambda p: save_mask(p, with_value(labels_of(SECOND), 255)),
        f"1 with values above 20: {SECOND}.png (255 (void))",
    ),
    "no palette": (with_colours(0), f"1 without the VOC palette: {SECOND}.png"),
    "grey palette": (
        lambda p: save_mask(p, labels_of(SECOND), palette=grey_palette()),
        f"1 without the VOC palette: {SECOND}.png",
    ),
    "short palette": (with_colours(20), f"1 without the VOC palette: {SECOND}.png"),
    "grey": (saved_as("L"), f"1 grey, without the VOC palette: {SECOND}.png"),
    "black and white": (saved_as("1"), f"1 grey, without the VOC palette: {SECOND}.png"),
    "16 bit": (saved_as("I;16"), f"1 grey, without the VOC palette: {SECOND}.png"),
    "colour": (saved_as("RGB"), f"1 in colour: {SECOND}.png"),
    "transparent": (saved_as("RGBA"), f"1 in colour: {SECOND}.png"),
    "GIF": (lambda p: save_mask(p, labels_of(SECOND), format="GIF"), f"1 no PNG: {SECOND}.png (GIF)"),
    "JPEG": (
        lambda p: Image.new("RGB", SIZES[SECOND][::-1]).save(p, format="JPEG"),
        f"1 no PNG: {SECOND}.png (JPEG)",
    ),
    "empty": (lambda p: p.write_bytes(b""), f"1 unreadable: {SECOND}.png"),
    "text": (lambda p: p.write_text("labels"), f"1 unreadable: {SECOND}.png"),
    "half": (lambda p: cut(p, 0.5), f"1 unreadable: {SECOND}.png"),
    "end cut off": (lambda p: cut(p, 0.98), f"1 unreadable: {SECOND}.png"),
    "a bit": (flip_a_bit, f"1 unreadable: {SECOND}.png"),
    "link": (replace_by_link, f"1 not plain files: {SECOND}.png"),
    "folder": (replace_by_folder, f"1 not plain files: {SECOND}.png"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_caught(folder, root, fault):
    spoil, expected = FAULTS[fault]
    assert check(folder, root).images == 3
    spoil(folder / f"{SECOND}.png")
    with pytest.raises(ResultsError) as caught:
        check(folder, root)
    head, *lines = str(caught.value).splitlines()
    assert head == f"results={str(folder)!r}: 1 fault; correct them before anything is uploaded"
    assert len(lines) == 1
    assert expected in lines[0]


def test_flawless_masks_pass_and_tell_what_is_in_them(folder, root):
    passed = check(folder, root)
    assert (passed.images, passed.values) == (3, (0, 1, 2, 3, 20))
    assert str(passed) == "3 images pass; found: 0, 1, 2, 3, 20"


def test_palette_may_end_after_the_last_value(folder, root):
    with_colours(21)(folder / f"{SECOND}.png")
    assert check(folder, root).values == (0, 1, 2, 3, 20)


def test_several_faults_are_all_listed(folder, root):
    (folder / f"{FIRST}.png").unlink()
    save_mask(folder / f"{SECOND}.png", with_value(labels_of(SECOND), 255))
    save_mask(folder / f"{THIRD}.png", labels_of(SECOND))
    for number in range(5):
        (folder / f"x{number}.png").touch()
    with pytest.raises(ResultsError) as caught:
        check(folder, root)
    assert str(caught.value).splitlines()[1:] == [
        "  5 extra: x0.png, x1.png, x2.png, ... (5 in all)",
        f"  1 missing: {FIRST}.png",
        f"  1 with values above 20: {SECOND}.png (255 (void))",
        f"  1 of another size: {THIRD}.png (17 x 31 instead of 9 x 8)",
    ]
    assert "8 faults" in str(caught.value)


def test_num_classes_is_the_bound_of_the_values(folder, root):
    with pytest.raises(ResultsError, match="3 with values above 19"):
        check(folder, root, num_classes=19)
    assert check(folder, root, num_classes=254).values[-1] == 20


def test_size_is_that_of_the_photograph_turned_upright(folder, root):
    height, width = SIZES[SECOND]
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    Image.new("RGB", (height, width)).save(root / "JPEGImages" / f"{SECOND}.jpg", exif=exif)
    assert check(folder, root).images == 3
    Image.new("RGB", (height, width)).save(root / "JPEGImages" / f"{SECOND}.jpg")
    with pytest.raises(ResultsError, match=rf"1 of another size: {SECOND}"):
        check(folder, root)


def test_wrong_layout_is_told_with_the_right_one(tmp_path, folder, root):
    with pytest.raises(ArgumentError, match=f"results=.*give the folder that holds {VOC_FOLDER}"):
        check_voc(folder, list(SIZES), root)


@pytest.mark.parametrize("image_id", ["../2007_000001", "a/b", "..", ""])
def test_ids_that_could_leave_the_folder_are_refused(folder, root, image_id):
    with pytest.raises(DataError, match="is not a plain file name"):
        check_voc(folder.parents[3], [FIRST, image_id], root)


def test_ids_without_a_photograph_are_named(folder, root):
    with pytest.raises(DataError, match=r"ids: 1 of 4 have no photograph in .*JPEGImages: 2009_000001"):
        check_voc(folder.parents[3], [*SIZES, "2009_000001"], root)


def test_a_damaged_photograph_is_no_fault_of_the_results(folder, root):
    (root / "JPEGImages" / f"{SECOND}.jpg").write_bytes(b"no image")
    with pytest.raises(DataError, match=rf"{SECOND}\.jpg: not an image"):
        check(folder, root)


def test_root_without_photographs_is_refused(folder, tmp_path):
    with pytest.raises(DatasetNotFoundError, match="JPEGImages"):
        check(folder, folder)


def test_masks_of_the_real_val_split(tmp_path, shared_root):
    root = shared_root / "data" / "voc2012_mini"
    ids = (root / "ImageSets" / "Segmentation" / "val.txt").read_text().split()[:24]
    folder = tmp_path / VOC_FOLDER
    folder.mkdir(parents=True)
    for image_id in ids:
        (folder / f"{image_id}.png").symlink_to(root / "SegmentationClass" / f"{image_id}.png")
    with pytest.raises(ResultsError, match="24 not plain files"):
        check_voc(tmp_path, ids, root)
    for image_id in ids:
        (folder / f"{image_id}.png").unlink()
        labels = np.array(Image.open(root / "SegmentationClass" / f"{image_id}.png"))
        assert (labels == 255).any()
        save_mask(folder / f"{image_id}.png", labels)
    with pytest.raises(ResultsError, match=r"24 with values above 20: 2.* \(255 \(void\)\)"):
        check_voc(tmp_path, ids, root)
    for image_id in ids:
        labels = np.array(Image.open(folder / f"{image_id}.png"))
        save_mask(folder / f"{image_id}.png", np.where(labels == 255, 0, labels).astype(np.uint8))
    assert check_voc(tmp_path, ids, root).images == 24
