"""Each fault of a COCO results file alone, and several at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rca_lightning.data.classes import COCO_CLASSES
from rca_lightning.errors import DataError, DatasetNotFoundError, ResultsError
from rca_lightning.submission.coco import CocoForm, check_coco

HEIGHT, WIDTH = 6, 9


def flawless() -> list[dict[str, Any]]:
    labels = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    labels[1:4, 2:6], labels[5, 5:] = 1, 80
    form = CocoForm(COCO_CLASSES)
    return form.entries("000000000007", labels, 0.5) + form.entries("000000000008", labels, 1.0)


@pytest.fixture
def annotations(tmp_path) -> Path:
    images = [{"id": number, "height": HEIGHT, "width": WIDTH, "file_name": f"{number}.jpg"} for number in (7, 8, 9)]
    path = tmp_path / "image_info.json"
    path.write_text(json.dumps({"images": images, "categories": [{"id": 1}, {"id": 90}]}))
    return path


def check(tmp_path: Path, annotations: Path, content: Any):
    path = tmp_path / "coco_results.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return check_coco(path, annotations)


def put(name: str, value: Any) -> Callable[[list[dict[str, Any]]], None]:
    return lambda entries: entries[1].__setitem__(name, value)


def rle(counts: Any, size: Any = (HEIGHT, WIDTH)) -> Callable[[list[dict[str, Any]]], None]:
    return put("segmentation", {"size": list(size), "counts": counts})


RIGHT = flawless()[1]["segmentation"]["counts"]
# What is done to the second entry, and the line that must tell of it.
FAULTS: dict[str, tuple[Callable[[list[dict[str, Any]]], object], str]] = {
    "no score": (lambda e: e[1].pop("score"), "1 without all fields: entry 1 (score)"),
    "not an object": (lambda e: e.__setitem__(1, [1]), "1 without all fields: entry 1 ("),
    "unknown image": (put("image_id", 10), "1 of an unknown image_id: entry 1 (10)"),
    "image as text": (put("image_id", "7"), "1 of an unknown image_id: entry 1 ('7')"),
    "image as float": (put("image_id", 7.0), "1 of an unknown image_id: entry 1 (7.0)"),
    "image as list": (put("image_id", [7]), "1 of an unknown image_id: entry 1 ([7])"),
    "unknown category": (put("category_id", 2), "1 of an unknown category_id: entry 1 (2)"),
    "category as bool": (put("category_id", True), "1 of an unknown category_id: entry 1 (True)"),
    "no category": (put("category_id", None), "1 of an unknown category_id: entry 1 (None)"),
    "score above 1": (put("score", 1.01), "1 with a score out of [0, 1]: entry 1 (1.01)"),
    "score below 0": (put("score", -1), "1 with a score out of [0, 1]: entry 1 (-1)"),
    "huge score": (put("score", 10**400), "1 with a score out of [0, 1]: entry 1 (1000"),
    "NaN": (put("score", float("nan")), "1 with a score that is not finite: entry 1 (nan)"),
    "infinite": (put("score", float("inf")), "1 with a score that is not finite: entry 1 (inf)"),
    "score as text": (put("score", "0.5"), "1 with a score that is no number: entry 1 ('0.5')"),
    "score as bool": (put("score", True), "1 with a score that is no number: entry 1 (True)"),
    "polygon": (put("segmentation", [[0, 0, 3, 0, 3, 3]]), "1 whose segmentation is no compressed RLE: entry 1"),
    "uncompressed": (rle([0, HEIGHT * WIDTH]), "1 whose segmentation is no compressed RLE: entry 1"),
    "turned": (rle(RIGHT, (WIDTH, HEIGHT)), "1 of another size: entry 1 ([9, 6] instead of [6, 9])"),
    "no size": (rle(RIGHT, ()), "1 of another size: entry 1 ([] instead of [6, 9])"),
    "cut off": (rle(RIGHT[:-1]), "1 whose RLE cannot be decoded: entry 1"),
    "empty": (rle(""), "1 whose RLE cannot be decoded: entry 1"),
    "too long": (rle(RIGHT + "5"), "1 whose RLE cannot be decoded: entry 1"),
    "no end": (rle("oooo"), "1 whose RLE cannot be decoded: entry 1"),
    "foreign signs": (rle("\u2603" + RIGHT), "1 whose RLE cannot be decoded: entry 1"),
    "sign below the range": (rle(RIGHT + " "), "1 whose RLE cannot be decoded: entry 1"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_alone_is_caught(tmp_path, annotations, fault):
    spoil, expected = FAULTS[fault]
    entries = flawless()
    spoil(entries)
    with pytest.raises(ResultsError) as caught:
        check(tmp_path, annotations, entries)
    head, *lines = str(caught.value).splitlines()
    assert head.endswith("coco_results.json': 1 fault; correct them before anything is uploaded")
    assert len(lines) == 1
    assert expected in lines[0]


def test_flawless_results_pass(tmp_path, annotations):
    passed = check(tmp_path, annotations, flawless())
    assert (passed.images, passed.values) == (2, (1, 90))


def test_several_faults_are_all_listed(tmp_path, annotations):
    entries = flawless()
    entries[0]["score"] = 2
    entries[1]["score"] = 3
    entries[1]["image_id"] = 99
    entries[2]["category_id"] = 99
    entries[2]["segmentation"]["size"] = [1, 1]
    del entries[3]["segmentation"]
    with pytest.raises(ResultsError) as caught:
        check(tmp_path, annotations, entries)
    assert str(caught.value).splitlines()[1:] == [
        "  2 with a score out of [0, 1]: entry 0 (2), entry 1 (3)",
        "  1 of an unknown image_id: entry 1 (99)",
        "  1 of an unknown category_id: entry 2 (99)",
        "  1 of another size: entry 2 ([1, 1] instead of [6, 9])",
        "  1 without all fields: entry 3 (segmentation)",
    ]


@pytest.mark.parametrize("content", ["{half", "[" * 100_000, "{}", "[]", "3", "\x00"])
def test_files_that_are_no_list_of_entries_are_refused(tmp_path, annotations, content):
    with pytest.raises(ResultsError, match=r"results=.*(not JSON|no list of entries)"):
        check(tmp_path, annotations, content)


@pytest.mark.parametrize(
    "content", ["{half", "[]", "{}", '{"images": [{"id": 1}], "categories": []}', '{"images": 3, "categories": []}']
)
def test_annotations_that_are_none_are_told_apart(tmp_path, annotations, content):
    annotations.write_text(content)
    with pytest.raises(DataError, match="annotations="):
        check(tmp_path, annotations, flawless())


def test_missing_files_are_named_by_their_argument(tmp_path, annotations):
    with pytest.raises(DatasetNotFoundError, match=r"results=.*none\.json"):
        check_coco(tmp_path / "none.json", annotations)
    with pytest.raises(DatasetNotFoundError, match=r"annotations=.*none\.json"):
        check(tmp_path, tmp_path / "none.json", flawless())
