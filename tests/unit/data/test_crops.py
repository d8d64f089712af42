"""Crops of cached features: what a plain loop over cells gives, and what they depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.data.crops import CachedCrops
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.loaders import training_loader
from rca_lightning.data.records import Record
from rca_lightning.data.sample import SkippedImage
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError

STRIDES = (4, 8, 16)
COARSEST, FINEST = STRIDES[-1], STRIDES[0]
HEIGHT, WIDTH = 75, 118  # no multiples of a cell: 5 x 8 of the coarsest


def coordinates(rows: int, columns: int) -> torch.Tensor:
    """Row and column of each cell, counted from 1: 0 is padding."""
    return torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")).float() + 1


def shows(row: int, column: int) -> int:
    """Class of the mask in a cell of half the finest stride."""
    return (3 * row + 7 * column) % 5


def make(folder: Path, *, size: tuple[int, int] = (HEIGHT, WIDTH), count: int = 1, crop_cells: int = 3, **options):
    """Photographs whose features are the coordinates of their cells, and whose masks are a class of each cell."""
    height, width = size
    rows, columns = -(-height // COARSEST), -(-width // COARSEST)
    cells = 2 * rows * COARSEST // FINEST, 2 * columns * COARSEST // FINEST
    mask = np.zeros(size, dtype=np.uint8)
    for y in range(height):
        for x in range(width):
            mask[y, x] = shows(int((y + 0.5) * cells[0] / height), int((x + 0.5) * cells[1] / width))
    cache, records = FeatureCache(folder / "cache"), []
    cache.use({}, scales=(1.0, 1.5), flip=True, levels=len(STRIDES))
    for index in range(count):
        photograph, drawn = folder / f"{index}.png", folder / f"{index}_mask.png"
        Image.new("RGB", (width, height)).save(photograph)
        Image.fromarray(mask).save(drawn)
        records.append(Record(str(index), photograph, tags=(0,), mask=drawn))
        levels = [coordinates(rows * COARSEST // stride, columns * COARSEST // stride) for stride in STRIDES]
        cache.write(records[-1], 1.0, levels)
    return CachedCrops(TaggedImages(records, num_classes=5), cache, crop_cells=crop_cells, **options)


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (20, 118), (20, 30), (48, 48)])
def test_levels_and_mask_of_a_crop_lie_on_each_other(tmp_path, size):
    crops = make(tmp_path, size=size)
    rows, columns = (-(-side // COARSEST) for side in size)
    corners, mirrors = set(), set()
    for epoch in range(60):
        sample = crops[(epoch, 0)]
        assert [tuple(level.shape) for level in sample["features"]] == [(2, 12, 12), (2, 6, 6), (2, 3, 3)]
        assert sample["mask"].shape == (24, 24)
        assert sample["mask"].dtype == torch.int64
        finest = sample["features"][0].float()
        inside = finest[1].flatten()[finest[1].flatten().nonzero()[:, 0]]
        mirrored = bool(inside[0] > inside[1])
        if mirrored:
            sample = {name: value.flip(1) if name == "mask" else value for name, value in sample.items()}
            sample["features"] = [level.flip(2) for level in sample["features"]]
        coarsest = sample["features"][-1]
        y, x = (int(part) for part in (coarsest[0] != 0).nonzero()[0])
        top, left = int(coarsest[0, y, x]) - 1 - y, int(coarsest[1, y, x]) - 1 - x
        corners.add((top, left))
        mirrors.add(mirrored)
        for level, stride in zip(sample["features"], STRIDES, strict=True):
            factor = COARSEST // stride
            for row in range(level.shape[1]):
                for column in range(level.shape[2]):
                    of = factor * top + row, factor * left + column
                    is_inside = 0 <= of[0] < factor * rows and 0 <= of[1] < factor * columns
                    expected = [of[0] + 1, of[1] + 1] if is_inside else [0, 0]
                    assert level[:, row, column].tolist() == expected
        factor = 2 * COARSEST // FINEST
        for row in range(24):
            for column in range(24):
                of = factor * top + row, factor * left + column
                is_inside = 0 <= of[0] < factor * rows and 0 <= of[1] < factor * columns
                assert int(sample["mask"][row, column]) == (expected_class(of, size) if is_inside else 255)
    places = [abs(side - 3) + 1 for side in (rows, columns)]
    assert len(corners) == min(len(corners), places[0] * places[1])
    assert len(corners) > 1 or places == [1, 1], "crops are drawn anew in each epoch"
    for axis, (side, count) in enumerate(zip((rows, columns), places, strict=True)):
        found = {corner[axis] for corner in corners}
        assert found <= set(range(min(0, side - 3), max(0, side - 3) + 1))
        assert len(found) == count, "every place comes"
    assert mirrors == {False, True}


def expected_class(cell: tuple[int, int], size: tuple[int, int]) -> int:
    """Class of the mask's pixel under the centre of a cell of half the finest stride."""
    cells = [2 * (-(-side // COARSEST)) * COARSEST // FINEST for side in size]
    y, x = (int((at + 0.5) * side / count) for at, side, count in zip(cell, size, cells, strict=True))
    return shows(int((y + 0.5) * cells[0] / size[0]), int((x + 0.5) * cells[1] / size[1]))


def same(one, other) -> bool:
    return all(map(torch.equal, one["features"], other["features"])) and torch.equal(one["mask"], other["mask"])


def test_a_crop_depends_on_seed_epoch_and_index_alone(tmp_path):
    crops = make(tmp_path, count=6)
    kept = [crops[(2, index)] for index in range(6)]
    torch.manual_seed(9)
    assert all(same(crops[(2, index)], kept[index]) for index in reversed(range(6)))
    assert same(crops[3], crops[(0, 3)])
    for options, epoch in (({}, 3), ({"seed": 1}, 2)):
        others = CachedCrops(crops.images, crops.cache, crop_cells=3, **options)
        assert not all(same(others[(epoch, index)], kept[index]) for index in range(6))
    assert not all(same(kept[0], other) for other in kept[1:])


def test_without_flip_no_crop_is_mirrored(tmp_path):
    crops = make(tmp_path, flip=False)
    for epoch in range(20):
        columns = crops[(epoch, 0)]["features"][0][1, 0]
        assert columns[1] > columns[0]


def test_batches_are_those_of_images(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "3")
    crops = make(tmp_path, count=7)
    orders = {}
    for workers in (0, 2):
        loader = training_loader(crops, batch_size=3, num_workers=workers, shuffle=True, pin_memory=False)
        for epoch in (0, 1):
            loader.sampler.set_epoch(epoch)
            batches = list(loader)
            assert len(batches) == 2, "the incomplete last batch is dropped"
            orders[workers, epoch] = [batch["image_id"] for batch in batches]
            for batch in batches:
                assert [tuple(level.shape) for level in batch["features"]] == [
                    (3, 2, 12, 12),
                    (3, 2, 6, 6),
                    (3, 2, 3, 3),
                ]
                assert batch["features"][0].dtype == torch.float16
                assert batch["mask"].shape == (3, 24, 24)
                assert batch["tags"].shape == (3, 5)
                for row, image_id in enumerate(batch["image_id"]):
                    alone = crops[(epoch, int(image_id))]
                    assert torch.equal(batch["mask"][row], alone["mask"])
                    assert torch.equal(batch["features"][1][row], alone["features"][1])
    images = training_loader(crops.images, batch_size=3, num_workers=0, shuffle=True, pin_memory=False)
    images.sampler.set_epoch(1)
    assert orders[0, 1] == orders[2, 1] != orders[0, 0]
    assert [str(index) for _, index in images.sampler][:6] == [name for batch in orders[0, 1] for name in batch]


def test_photographs_without_a_mask_and_with_a_bad_one(tmp_path):
    crops = make(tmp_path, count=2)
    first, second = crops.images.records
    bare = CachedCrops(
        TaggedImages([Record("0", first.image, tags=()), second], num_classes=5), crops.cache, crop_cells=3
    )
    assert "mask" not in bare[0]
    (batch,) = training_loader(bare, batch_size=2, num_workers=0, shuffle=False, pin_memory=False)
    assert "mask" not in batch
    first.mask.write_bytes(b"no mask")
    with pytest.raises(DataError, match="0_mask"):
        crops[0]
    skipping = CachedCrops(TaggedImages([first, second], num_classes=5, skip_of="train"), crops.cache, crop_cells=3)
    assert set(skipping[0]["mask"].flatten().tolist()) == {255}
    (batch,) = training_loader(skipping, batch_size=2, num_workers=0, shuffle=False, pin_memory=False)
    assert [image[:2] for image in batch["unread"]] == [("train", "0")]
    assert isinstance(batch["unread"][0], SkippedImage)
    assert set(batch["mask"][1].flatten().tolist()) > {1, 2}


def test_what_cannot_be_is_one_sentence(tmp_path):
    crops = make(tmp_path)
    with pytest.raises(ArgumentError, match="crop_cells=0: give at least one cell"):
        CachedCrops(crops.images, crops.cache, crop_cells=0)
    (record,) = crops.images.records
    crops.cache.path(record, 1.0, level=1).unlink()
    with pytest.raises(DatasetNotFoundError, match="features of 0 are gone"):
        crops[0]
    crops.cache.write(record, 1.0, [torch.zeros(1, 9, 8), torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)])
    with pytest.raises(DataError, match="features of 0: a grid of 9 x 8 cells does not divide the coarsest one, 4 x 4"):
        crops[0]
