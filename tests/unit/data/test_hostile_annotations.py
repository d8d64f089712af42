"""Annotations, tags and lists that somebody made to do harm."""

from __future__ import annotations

import contextlib
import json
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.data.coco_files import HEIGHT, WIDTH, write_coco

from rca_lightning.data.classes import ClassIndex
from rca_lightning.data.coco import COCOSource
from rca_lightning.data.coco_shapes import CocoShapes, decode_rle
from rca_lightning.data.folder import FolderSource
from rca_lightning.data.tag_files import read_id_list, read_tag_file
from rca_lightning.data.voc import read_xml_tags
from rca_lightning.errors import DataError, DatasetNotFoundError

CLASSES = ClassIndex(["cat", "dog"])
LAUGHS = '<!DOCTYPE a [<!ENTITY a "ha">' + "".join(
    f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    "content",
    [
        (LAUGHS + "]><annotation><object><name>&i;</name></object></annotation>").encode(),
        b'<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation><object><name>&x;</name></object></annotation>',
        b'<?xml version="1.0" encoding="no-such"?><annotation/>',
        b'<?xml version="1.0" encoding="euc-jp"?><annotation/>',
        b'<?xml version="1.0" encoding="zlib"?><annotation/>',
        b"<a>" * 100_000,
        b"\0" * 100,
    ],
)
def test_xml_is_refused_in_one_sentence(content: bytes, tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"a\.xml: (not well-formed XML|has a DOCTYPE)"):
        read_xml_tags(path, CLASSES)


def test_file_names_in_xml_are_not_followed(tmp_path: Path):
    path = tmp_path / "a.xml"
    path.write_text("<annotation><filename>../../etc/passwd</filename><object><name>cat</name></object></annotation>")
    assert read_xml_tags(path, CLASSES) == (0,)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_pipe_is_no_annotation(tmp_path: Path):
    os.mkfifo(tmp_path / "a.xml")
    with pytest.raises(DataError, match="not a regular file"):
        read_xml_tags(tmp_path / "a.xml", CLASSES)
    with pytest.raises(DatasetNotFoundError, match="no such file"):
        read_xml_tags(tmp_path / "b.xml", CLASSES)


OUTSIDE = ["../a", "/etc/passwd", "..", ".", "a/../../b", "..\\a", "a\0b", "\x1b[2J"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_ids_lead_nowhere(name: str, tmp_path: Path):
    for file, content in (("tags.csv", f"image,tags\n{name},cat\n"), ("tags.txt", f"{name} cat\n"), ("ids.txt", name)):
        path = tmp_path / file
        path.write_bytes(content.encode())
        with pytest.raises(DataError):
            read_id_list(path) if file == "ids.txt" else read_tag_file(path, CLASSES)


@pytest.mark.parametrize("line", ["a," + "x" * 200_000, '"a\0",cat'])
def test_lines_that_csv_refuses_are_named(line: str, tmp_path: Path):
    path = tmp_path / "tags.csv"
    path.write_text(f"image,tags\n{line}\n")
    with pytest.raises(DataError, match=r"tags\.csv, line 2: "):
        read_tag_file(path, CLASSES)


def test_folder_gives_only_what_lies_in_it(tmp_path: Path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(b"")
    (tmp_path / "b.jpg").write_bytes(b"")
    (tmp_path / "ids.txt").write_text("a\nb\n")
    source = FolderSource(tmp_path, classes=("cat",), split_files={"train": "ids.txt"})
    with pytest.raises(DataError, match=r"1 of its 2 images are not in .*images: b"):
        source.records("train", with_masks=False)


def coco(tmp_path: Path, **changes: Any) -> COCOSource:
    root = write_coco(tmp_path / "coco", images=3)
    path = root / "annotations" / "instances_train2017.json"
    content = json.loads(path.read_text())
    content["images"][0] |= changes
    path.write_text(json.dumps(content))
    return COCOSource(root, year=2017)


@pytest.mark.parametrize(
    "changes",
    [
        *({"file_name": f"{name}.jpg"} for name in OUTSIDE[:3]),
        *({"height": value} for value in (-1, 0, 2**40, 1e400, "a", None, [3])),
        *({"id": value} for value in ([1], {"a": 1}, None)),
        {"file_name": "000000000002.\ud800"},
        {"file_name": 5},
    ],
)
def test_images_of_coco_that_cannot_be_are_refused(changes: dict[str, Any], tmp_path: Path):
    with pytest.raises(DataError, match=r"instances_train2017\.json"):
        coco(tmp_path, **changes).records("train", with_masks=True)


@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, '{"images": {}, "annotations": 3}', "\xff"]
)
def test_json_of_another_kind_is_refused(text: str, tmp_path: Path):
    source = coco(tmp_path)
    (source.root / "annotations" / "instances_train2017.json").write_text(text, encoding="latin-1")
    with pytest.raises(DataError, match="not a COCO instances file"):
        source.records("train", with_masks=True)


def shapes(*segmentations: Any) -> CocoShapes:
    return CocoShapes.pack([(1, one) for one in segmentations], height=HEIGHT, width=WIDTH, where="here")


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=7) | st.dictionaries(st.sampled_from(["size", "counts", "a"]), inner),
)


@given(_JSON)
@settings(max_examples=80, deadline=None)
def test_any_segmentation_is_drawn_or_refused(segmentation: Any):
    with contextlib.suppress(DataError):
        assert shapes(segmentation).draw().shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    "segmentation",
    [
        [[1e9, 0, 5, 5, 0, 9]],
        [[0, 0, 10**400, 5, 5, 5]],
        [[0, 0, float("nan"), 5, 5, 5]],
        [[0, 0, 119, 119] * 20_000],  # an outline of two million pixels
        {"size": 5, "counts": [600]},
        {"size": [HEIGHT, WIDTH], "counts": [2**62, 2**62, 2**62, 2**62]},
        {"size": [HEIGHT, WIDTH], "counts": [10**30]},
        {"size": [HEIGHT, WIDTH], "counts": "o" * 300_000},  # one number of 1.5 million bits
        {"size": [HEIGHT, WIDTH], "counts": "é\n"},
    ],
)
def test_regions_without_end_are_refused(segmentation: Any):
    with pytest.raises(DataError, match="here: "):
        shapes(segmentation).draw()


def test_nested_lists_are_refused_where_they_are_drawn():
    packed = b"[[1," + b"[" * 5000 + b"]" * 5000 + b"]]"
    with pytest.raises(DataError, match="here: "):
        CocoShapes(height=HEIGHT, width=WIDTH, where="here", packed=packed).draw()


def test_many_objects_take_no_mask_each():
    outline = [[10, 10, 300, 12, 290, 310, 15, 300]]
    crowd = CocoShapes.pack([(1, outline)] * 400, height=500, width=500, where="here")
    tracemalloc.start()
    crowd.draw()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * 500 * 500  # 400 masks would be 400 times that many bytes


def test_run_lengths_of_a_tuple_size_are_read():
    assert decode_rle({"size": (2, 3), "counts": [1, 5]}, height=2, width=3, where="here").sum() == 5
