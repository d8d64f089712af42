"""What the page keeps of a photograph: reduced maps and masks, their packing, and what is measured."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.pseudo_labels.files import write_mask_file
from rca_lightning.pseudo_labels.labels import threshold_background
from rca_lightning.report.entries import (
    ReportEntry,
    measure,
    pack_planes,
    reduce_label,
    reduce_maps,
    strongest_class,
    thumbnail,
)


def test_reduced_maps_are_means_of_areas():
    maps = torch.rand(2, 12, 8, generator=torch.Generator().manual_seed(0))
    reduced = reduce_maps(maps, long_side=6)
    assert reduced.shape == (2, 6, 4)
    for k, y, x in np.ndindex(2, 6, 4):
        cells = [float(maps[k, 2 * y + a, 2 * x + b]) for a in range(2) for b in range(2)]
        assert float(reduced[k, y, x]) == pytest.approx(sum(cells) / 4, abs=1e-6)
    assert reduce_maps(maps, long_side=50).equal(maps)
    assert reduce_maps(torch.zeros(0, 300, 200), long_side=6).shape == (0, 6, 4)


def test_page_thresholds_as_the_library_does():
    """Hundredths, rounded up, exceed k exactly where the value exceeds k / 100."""
    generator = torch.Generator().manual_seed(1)
    maps = torch.rand(3, 20, 20, generator=generator)
    maps[:, :4] = (maps[:, :4] * 100).round() / 100  # many on a threshold
    classes, values = strongest_class(maps, [2, 5, 11])
    for k in range(0, 101):
        drawn = threshold_background(maps.double(), float(np.float32(k / 100)))
        expected = np.array([0, 3, 6, 12])[drawn.numpy()]
        assert (np.where(values > k, classes, 0) == expected).all(), k


def test_packed_planes_are_what_the_script_unpacks():
    generator = np.random.default_rng(2)
    classes, values = (
        generator.integers(0, 9, (5, 7), dtype=np.uint8),
        generator.integers(0, 101, (5, 7), dtype=np.uint8),
    )
    label = generator.integers(0, 256, (6, 4), dtype=np.uint8)
    data = zlib.decompress(pack_planes(classes, values, label))
    assert tuple(data[:4]) == (7, 5, 4, 6)
    assert data[4:39] == classes.tobytes()
    for row in range(5):
        total = 0
        for column in range(7):
            total = (total + data[39 + 7 * row + column]) % 256
            assert total == values[row, column]
    assert data[74:] == label.tobytes()
    assert tuple(zlib.decompress(pack_planes(classes, values, None))[:4]) == (7, 5, 0, 0)


def test_reduced_label_picks_the_middle_of_each_cell():
    label = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert reduce_label(label, long_side=4).tolist() == [[9, 11, 13, 15], [25, 27, 29, 31], [41, 43, 45, 47]]
    assert reduce_label(label).tolist() == label.tolist()


@pytest.fixture
def entry(tmp_path: Path) -> ReportEntry:
    Image.fromarray(np.full((20, 30, 3), 90, dtype=np.uint8)).save(tmp_path / "a.jpg")
    label = np.zeros((20, 30), dtype=np.uint8)
    label[:10, :15] = 2
    label[0, 20:26] = 255
    write_mask_file(torch.from_numpy(label), tmp_path / "a.png")
    maps = np.zeros((1, 20, 30), dtype=np.float16)
    maps[0, :10, :15] = 0.75
    np.savez_compressed(
        tmp_path / "a.npz", maps=maps, classes=np.array([1]), probabilities=np.array([0.1], dtype=np.float32)
    )
    return ReportEntry("a", tmp_path / "a.jpg", tmp_path / "a.png", tmp_path / "a.npz", ("dog", "cat"))


def test_measured_shares_quality_and_reasons(entry: ReportEntry):
    measured = measure(entry, ["cat", "dog"], threshold=0.5)
    assert measured.shares == {1: 0.25}
    assert measured.quality == pytest.approx((1 + 0.5) / 2)
    assert measured.reasons == ("cat is never drawn", "the network doubts dog (0.10)")
    assert measured.has_map


def test_given_quality_and_reason_come_first(entry: ReportEntry):
    given = ReportEntry(entry.image_id, entry.photograph, entry.label, None, ("dog",), 0.9, "looks like another")
    measured = measure(given, ["cat", "dog"], threshold=0.5)
    assert (measured.quality, measured.reasons, measured.has_map) == (0.9, ("looks like another",), False)


@pytest.mark.parametrize("damage", ["cut", "gone", "class", "nan"])
def test_maps_that_cannot_be_read_are_a_reason(entry: ReportEntry, damage: str):
    assert entry.maps is not None
    if damage == "cut":
        entry.maps.write_bytes(entry.maps.read_bytes()[:50])
    elif damage == "gone":
        entry.maps.unlink()
    else:
        maps = np.full((1, 4, 4), np.nan if damage == "nan" else 0.5)
        np.savez(entry.maps, maps=maps, classes=np.array([7 if damage == "class" else 1]))
    measured = measure(entry, ["cat", "dog"], threshold=0.5)
    assert not measured.has_map
    assert str(entry.maps) in measured.reasons[0]
    assert measured.shares == {1: 0.25}


def test_maps_without_probabilities_will_do(entry: ReportEntry):
    assert entry.maps is not None
    np.savez(entry.maps, maps=np.full((1, 4, 4), 0.9), classes=np.array([1]))
    measured = measure(entry, ["cat", "dog"], threshold=0.5)
    assert measured.has_map
    assert measured.reasons == ("cat is never drawn",)


def test_thumbnail_has_the_asked_size_and_none_of_a_damaged_file(entry: ReportEntry):
    import base64
    import io

    text = thumbnail(entry.photograph, long_side=15)
    assert text is not None
    assert Image.open(io.BytesIO(base64.b64decode(text))).size == (15, 10)
    entry.photograph.write_bytes(b"no picture")
    assert thumbnail(entry.photograph, long_side=15) is None
