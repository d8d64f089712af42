"""Records in flat arrays are the records that were laid out."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.records import PackedStrings, Record, RecordTable
from rca_lightning.errors import DataError

SHAPES = CocoShapes.pack([(1, [[2, 2, 12, 2, 12, 12]])], height=20, width=30, where="a.json, image é.jpg")
RECORDS = [
    Record("a", Path("one/a.jpg"), tags=(0, 4), mask=Path("masks/a.png")),
    Record("é ñ", Path("/two/é ñ.jpeg"), tags=(), mask=SHAPES, saliency=Path("maps/é ñ.png")),
    Record("undecodable\udcff", Path("one/undecodable\udcff.png"), tags=None),
    Record("d", Path("d.jpg"), tags=(79,), saliency=Path("maps/d.png")),
]


def test_records_come_back_whole_in_every_way_of_asking() -> None:
    table = RecordTable.of(RECORDS)
    assert list(table) == RECORDS
    assert [table[index] for index in range(-4, 4)] == RECORDS + RECORDS
    assert list(pickle.loads(pickle.dumps(table))) == RECORDS
    assert RecordTable.of(table) is table
    for index in (4, -5):
        with pytest.raises(IndexError):
            table[index]


def test_parts_of_parts() -> None:
    table = RecordTable.of(RECORDS)
    last = table[1:]
    assert list(last) == RECORDS[1:]
    assert last.image_ids == [record.image_id for record in RECORDS[1:]]
    assert list(last.take(np.array([2, 0]))) == [RECORDS[3], RECORDS[1]]
    assert list(last.take(np.array([False, True, True]))) == RECORDS[2:]
    assert list(last[::-2]) == [RECORDS[3], RECORDS[1]]
    assert list(table[4:]) == list(RecordTable.of([])) == []


def test_columns_tell_what_the_records_tell() -> None:
    for table, records in ((RecordTable.of(RECORDS), RECORDS), (RecordTable.of(RECORDS)[2:], RECORDS[2:])):
        assert table.tag_counts.tolist() == [-1 if record.tags is None else len(record.tags) for record in records]
        assert table.has_mask.tolist() == [record.mask is not None for record in records]
        assert table.has_saliency.tolist() == [record.saliency is not None for record in records]


def test_files_by_image_id_replace_masks() -> None:
    files = {"d": Path("new/d.png"), "é ñ": Path("new/é ñ.png"), "stranger": Path("new/s.png")}
    table = RecordTable.of(RECORDS).take(np.array([3, 0, 1]))
    expected = [replace(RECORDS[row], mask=files.get(RECORDS[row].image_id)) for row in (3, 0, 1)]
    assert list(table.with_mask_files(files)) == expected
    expected = [replace(RECORDS[row], saliency=files.get(RECORDS[row].image_id)) for row in (3, 0, 1)]
    assert list(table.with_saliency(files)) == expected


def test_images_left_out_keep_their_order() -> None:
    images = TaggedImages(RECORDS, num_classes=80)
    assert list(images.without({"a", "d"}, at_least=1).records) == RECORDS[1:3]
    assert list(images.without({"a", "d"}, at_least=3).records) == [RECORDS[1], RECORDS[2], RECORDS[0]]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    RecordTable.of(RECORDS).write(tmp_path / "index.bin", key="mine")
    return tmp_path / "index.bin"


def test_records_of_a_file_come_back_read_only(file: Path) -> None:
    table = RecordTable.read(file, key="mine")
    assert list(table) == RECORDS
    with pytest.raises(ValueError, match="read-only"):
        table.heads.data[0] = 1
    for records in ([], RECORDS[:1]):
        RecordTable.of(records).write(file, key="mine")
        assert list(RecordTable.read(file, key="mine")) == records


def test_every_damaged_byte_is_noticed(file: Path) -> None:
    content = file.read_bytes()
    for place in range(len(content)):
        file.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        with pytest.raises(ValueError):  # noqa: PT011 - damaged at another place, another message
            RecordTable.read(file, key="mine")
    for length in (0, 5, 24, 100, len(content) - 1):
        file.write_bytes(content[:length])
        with pytest.raises(ValueError):  # noqa: PT011
            RecordTable.read(file, key="mine")


def test_a_file_of_other_sources_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="other sources"):
        RecordTable.read(file, key="yours")


def test_a_mapped_table_is_pickled_as_the_name_of_its_file(tmp_path: Path) -> None:
    records = [Record(f"{number:012d}", Path(f"{number:012d}.jpg"), mask=SHAPES) for number in range(500)]
    RecordTable.of(records).write(tmp_path / "large.bin", key="k")
    table = RecordTable.read(tmp_path / "large.bin", key="k")
    assert len(pickle.dumps(table)) < 1000
    assert list(pickle.loads(pickle.dumps(table))) == records
    assert list(pickle.loads(pickle.dumps(table[7:9]))) == records[7:9]


def test_a_file_that_is_gone_says_what_to_do(file: Path) -> None:
    pickled = pickle.dumps(RecordTable.read(file, key="mine"))
    file.unlink()
    with pytest.raises(DataError, match=r"index\.bin.*No such file.*start the run anew"):
        pickle.loads(pickled)


def test_packed_strings_are_the_strings() -> None:
    for strings in ([], [b""], [b"a", b"", b"bc"]):
        assert list(PackedStrings.pack(strings)) == strings
