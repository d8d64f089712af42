"""What stands in the page, and how much memory and room it takes."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from report_classes import CLASSES
from tests.html_contents import Contents

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.atlas.page import IndexEntry, Row, Tile
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.report.page import write_report
from rca_lightning.report.sections import class_colours

RUN = {
    "command": ["rca", "masks", "my photographs", "--out", "<out>"],
    "version": "0.2",
    "settings": {"background_threshold": 0.4, "refine": ["pamr"], "note": "<script>alert(1)</script>"},
    "seconds": {"fit": 61.0, "labels": 3.25},
    "skipped": [{"image": "<broken>.jpg", "reason": "cut off & damaged"}],
    "warnings": ["cat and dog always come together"],
    "scores": {
        "miou": 0.615,
        "miou_interval": {"low": 0.502, "high": 0.698, "level": 0.95, "draws": 1000, "seed": 0},
        "miou_by_size": {"small": {"miou": None, "pairs": 0}, "large": {"miou": 0.473, "pairs": 7}},
        "trimap_miou": 0.384,
        "threshold": None,
        "per_class_iou": {"background": 0.9, "cat": 0.5, "dog": 0.4, "<b>cow</b>": 0.66},
        "protocol": {
            "split": {"name": "<i>all</i>", "images": 6},
            "supervision": {"tags": "mixed", "saliency": False},
            "threshold": "auto",
            "scales": [1.0, 1.5],
            "weights": None,
            "background": {"kind": "fixed", "background_threshold": 0.43, "power": None},
        },
    },
    "curves": {"train/<loss>": [[0, 2.0], [1, 1.25], [2, float("nan")]]},
}


def read_index(page: Path) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="index">(.*?)</script>', page.read_text())[1])


@pytest.fixture
def page(tmp_path: Path, entries) -> str:
    odd = [*entries(5), replace(next(entries(1)), image_id="<i>odd</i>", tags=("cat", "dog"))]
    odd.append(replace(odd[0], image_id="gone", label=None, reason="near-duplicate of photo_00000"))
    return write_report(tmp_path / "out", odd, run=RUN, classes=CLASSES).read_text()


def test_page_says_what_the_run_says(page: str):
    words = " ".join(Contents(page).words)
    for expected in (
        "rca masks 'my photographs' --out '<out>'",
        "<script>alert(1)</script>",
        "<broken>.jpg",
        "cut off & damaged",
        "near-duplicate of photo_00000",
        "cat and dog always come together",
        "61.5",
        "mIoU (50.2 to 69.8)",
        "scored with true masks: 6 images, true tags of some, threshold auto",
        "mIoU 61.5, 95 % interval over images 50.2 to 69.8",
        "objects by size: small - (0), large 47.3 (7)",
        "near outlines (trimap): mIoU 38.4",
        "name <i>all</i>, images 6",
        "tags mixed, saliency no",
        "kind fixed, background threshold 0.43",
        "1.0, 1.5",
        "train/<loss>",
        "1.25",
        "1 min 1 s",
        "dog is never drawn",
        "<b>cow</b>",
    ):
        assert expected in words


def test_everything_is_escaped_and_nothing_is_fetched(page: str):
    contents = Contents(page)
    assert "b" not in contents.tags
    assert "i" not in contents.tags
    assert all(link.startswith(("#", "data:image/jpeg;base64,")) for link in contents.links)
    assert re.search(r"\b(?:https?:)?//[a-z]+\.", re.sub(r"http://www.w3.org/2000/svg", "", page)) is None


def test_policy_allows_exactly_the_script_and_the_style_of_the_page(page: str):
    (policy,) = re.findall(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for kind, content in (("style", r"<style>(.*?)</style>"), ("script", r"<script>(.*?)</script>")):
        (text,) = re.findall(content, page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert f"{kind}-src 'sha256-{digest}'" in policy
    assert re.search(r"<[^>]*\s(style|on[a-z]+)=", page) is None  # which the policy would block


def test_gallery_is_sorted_by_quality_and_starts_at_the_threshold_of_the_run(tmp_path: Path, entries):
    qualities = [0.7, 0.2, None, 0.9, 0.4]
    given = [replace(entry, maps=None, quality=q) for entry, q in zip(entries(5), qualities, strict=True)]
    index = read_index(write_report(tmp_path, given, run=RUN, classes=CLASSES))
    assert [photo["q"] for photo in index["photos"]] == [0.2, 0.4, 0.7, 0.9, None]
    assert index["threshold"] == 40


def test_of_more_photographs_than_fit_those_of_the_lowest_quality_stay_and_all_are_counted(tmp_path: Path, entries):
    given = [replace(entry, quality=((7 * n) % 30) / 30) for n, entry in enumerate(entries(30))]
    path = write_report(tmp_path, given, run={}, classes=CLASSES, gallery=8)
    assert [round(30 * photo["q"]) for photo in read_index(path)["photos"]] == list(range(8))
    assert "30 photographs, 3 classes" in path.read_text()
    assert "The 8 photographs of the lowest quality, of 30" in path.read_text()
    assert len(re.findall(r'<script type="text/plain"', path.read_text())) == 8


def test_a_tenth_of_a_full_gallery_is_an_even_sample_of_the_others(tmp_path: Path, entries):
    drawn = []
    for turn in range(8):
        given = [
            replace(entry, image_id=f"{turn}_{n}", quality=((7 * n) % 60) / 60) for n, entry in enumerate(entries(60))
        ]
        path = write_report(tmp_path, given, run={}, classes=CLASSES, gallery=20)
        shown = [round(60 * photo["q"]) for photo in read_index(path)["photos"]]
        assert shown[:18] == list(range(18))
        drawn += shown[18:]
        assert "The 18 photographs of the lowest quality and 2 others, drawn evenly, of 60" in path.read_text()
        again = write_report(tmp_path, reversed(given), run={}, classes=CLASSES, gallery=20)
        assert [round(60 * photo["q"]) for photo in read_index(again)["photos"]] == shown
    assert len(drawn) == 16
    assert min(drawn) >= 18
    assert sum(rank < 39 for rank in drawn) in range(3, 14)  # neither only low nor only high ones


def test_photographs_that_cannot_be_read_leave_a_gap(tmp_path: Path, entries):
    lost = replace(next(entries(1)), photograph=tmp_path / "lost.jpg")
    page = write_report(tmp_path, [lost], run={}, classes=CLASSES).read_text()
    assert re.search(r'<script type="text/plain" id="p0"> \S+</script>', page)


def test_scores_and_qualities_that_are_no_numbers(tmp_path: Path, entries):
    run = {"scores": {"miou": None, "per_class_iou": {"cat": float("nan"), "dog": None}}}
    path = write_report(tmp_path, [replace(next(entries(1)), quality=float("nan"))], run=run, classes=CLASSES)
    assert 0 <= read_index(path)["photos"][0]["q"] <= 1  # measured instead
    assert "nan" not in Contents(path.read_text()).words


def test_page_without_anything(tmp_path: Path):
    contents = Contents(write_report(tmp_path, [], run={}, classes=[]).read_text())
    assert "Nothing was skipped." in contents.words


def test_atlas_of_each_class_with_alternative_texts(tmp_path: Path, entries):
    tiles = (Tile(np.zeros((144, 144, 3), np.uint8), "photo <1>", "0.91"), Tile(None, "photo 2", "0.80"))
    rows = (Row("prototype 3", ("9 regions", "of 8 images"), 0.5, tiles),)
    atlas = [
        AtlasClass(1, IndexEntry("cat", "001_cat.png", 9, 8, 1, 0.8, float("nan")), "9 regions of 8 images", rows),
        AtlasClass(2, IndexEntry("dog", None, 0, 0, 0, float("nan"), float("nan")), "", ()),
    ]
    page = write_report(tmp_path, entries(2), run={}, classes=CLASSES, atlas=atlas).read_text()
    assert 'alt="Region of photo &lt;1&gt; for cat, prototype 3, cosine 0.91"' in page
    words = Contents(page).words
    assert {"prototype 3", "9 regions", "cannot be read", "0.91"} <= set(words)
    assert page.count("<details class=proto>") == 1


def test_memory_does_not_grow_with_the_photographs_that_do_not_fit_nor_much_with_those_that_do(tmp_path: Path, entries):
    def peak(count: int, gallery: int) -> int:
        tracemalloc.start()
        write_report(tmp_path, entries(count), run={}, classes=CLASSES, gallery=gallery)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(20, 20)  # imports and caches
    assert peak(200, 25) < peak(50, 25) + (1 << 19)
    assert peak(200, 200) < peak(50, 50) + 150 * 8192


@pytest.mark.parametrize("arguments", [{"threshold": 1.5}, {"gallery": 0}])
def test_arguments_out_of_range(tmp_path: Path, arguments: dict):
    with pytest.raises(ArgumentError, match=next(iter(arguments))):
        write_report(tmp_path, [], run={}, classes=[], **arguments)


def test_folder_that_takes_no_files_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="out"):
        write_report(tmp_path / "file" / "below", [], run={}, classes=[])


def test_colours_of_80_classes_differ_and_are_bright():
    colours = np.array(class_colours(80)).astype(float)
    gaps = np.abs(colours[:, None] - colours[None]).max(axis=2) + 255 * np.eye(80)
    assert gaps.min() > 0
    assert gaps[:20, :20].min() >= 20
    assert (colours @ [0.2126, 0.7152, 0.0722]).min() > 80
