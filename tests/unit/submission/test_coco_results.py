"""COCO results: names of images and classes, regions, and what pycocotools makes of them."""

from __future__ import annotations

import contextlib
import io
import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tests.folder_contents import file_names

from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES, VOC_CLASSES
from rca_lightning.data.coco import COCOSource
from rca_lightning.errors import ArgumentError
from rca_lightning.submission.coco import CocoForm, check_coco, encode_rle, write_coco_results


@pytest.mark.parametrize(
    ("classes", "name", "expected"),
    [
        (COCO_CLASSES, "000000000139", 139),
        (COCO_CLASSES, "COCO_val2014_000000000042", 42),
        (COCO_CLASSES, "holiday", "holiday"),
        (VOC_CLASSES, "2007_000033", "2007_000033"),
        (VOC_CLASSES, "000000000139", "000000000139"),
    ],
)
def test_image_ids(classes, name, expected):
    found = CocoForm(classes).image_id(name)
    assert found == expected
    assert type(found) is type(expected)


def test_category_ids_of_coco_have_its_gaps_and_others_count_from_one():
    labels = np.array([[0, 1, 12, 80]], dtype=np.uint8)
    coco = [entry["category_id"] for entry in CocoForm(COCO_CLASSES).entries("1", labels, 0.5)]
    assert [COCO_CATEGORIES[number] for number in coco] == ["person", "stop sign", "toothbrush"]
    assert coco == [1, 13, 90]
    own = CocoForm([f"class {number}" for number in range(80)]).entries("1", labels, 0.5)
    assert [entry["category_id"] for entry in own] == [1, 12, 80]


def test_ids_of_the_annotations_win():
    form = CocoForm(["crack", "rust"], categories=(7, 30), images={"im1": 11})
    assert (form.image_id("im1"), form.image_id("000000000139")) == (11, "000000000139")
    assert [entry["category_id"] for entry in form.entries("im1", np.array([[0, 1, 2]], np.uint8), 0.5)] == [7, 30]
    # Classes of COCO under ids that are not COCO's.
    form = CocoForm(COCO_CLASSES, categories=range(80), images={"000000000139": 4})
    assert form.image_id("000000000139") == 4
    assert [entry["category_id"] for entry in form.entries("a", np.array([[80]], np.uint8), 0.5)] == [79]
    with pytest.raises(ArgumentError, match=r"categories=\(7,\): give 2 ids, one a class"):
        CocoForm(["crack", "rust"], categories=(7,))


def test_one_entry_a_class_that_occurs():
    labels = np.random.default_rng(0).integers(0, 4, (13, 7)).astype(np.uint8)
    labels[labels == 2] = 0
    entries = CocoForm(["a", "b", "c"]).entries("photo", labels, 0.25)
    assert [sorted(entry) for entry in entries] == [["category_id", "image_id", "score", "segmentation"]] * 2
    for entry in entries:
        assert (entry["image_id"], entry["score"]) == ("photo", 0.25)
        assert entry["segmentation"]["size"] == [13, 7]
        assert np.array_equal(coco_mask.decode(entry["segmentation"]), labels == entry["category_id"])
    assert CocoForm(["a"]).entries("photo", np.zeros((3, 3), np.uint8), 0.5) == []


def test_values_above_the_classes_and_wrong_scores_are_refused():
    with pytest.raises(ArgumentError, match="labels=255: give values up to 20 for 'photo'"):
        CocoForm(VOC_CLASSES).entries("photo", np.array([[255]], np.uint8), 0.5)
    for score in (float("nan"), -0.1, 1.1):
        with pytest.raises(ArgumentError, match="score="):
            CocoForm(VOC_CLASSES).entries("photo", np.array([[1]], np.uint8), score)


def test_file_is_a_json_list_or_not_there(tmp_path):
    path = tmp_path / "results.json"
    assert write_coco_results(path, []) == 0
    assert json.loads(path.read_text()) == []
    assert write_coco_results(path, ({"number": number} for number in range(3))) == 3
    assert json.loads(path.read_text()) == [{"number": 0}, {"number": 1}, {"number": 2}]
    before = path.read_bytes()

    def broken():
        yield {"number": 0}
        raise RuntimeError("stopped")

    with pytest.raises(RuntimeError, match="stopped"):
        write_coco_results(path, broken())
    assert path.read_bytes() == before
    assert file_names(tmp_path) == ["results.json"]


def instances(labels_by_image: dict[int, np.ndarray]) -> dict:
    """Official annotations whose only object of a class in an image is all of its pixels."""
    objects = []
    for image_id, labels in labels_by_image.items():
        for value in np.unique(labels[labels > 0]).tolist():
            region = encode_rle(labels == value)
            category = list(COCO_CATEGORIES)[value - 1]
            area, box = float(coco_mask.area(region)), coco_mask.toBbox(region).tolist()
            common = {"image_id": image_id, "category_id": category, "iscrowd": 0, "id": len(objects) + 1}
            objects.append(common | {"segmentation": region, "area": area, "bbox": box})
    return {
        "info": {},
        "images": [
            {"id": number, "height": labels.shape[0], "width": labels.shape[1], "file_name": f"{number:012d}.jpg"}
            for number, labels in labels_by_image.items()
        ],
        "annotations": objects,
        "categories": [{"id": number, "name": name} for number, name in COCO_CATEGORIES.items()],
    }


def scored(annotations: str, results: str) -> float:
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(annotations)
        evaluation = COCOeval(truth, truth.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def test_ground_truth_of_real_photographs_scores_one(tmp_path, shared_root):
    source = COCOSource(shared_root / "data" / "coco2017_mini", year=2017)
    records = source.records("train", with_masks=True)[:24]
    masks = {int(record.image_id): record.mask.draw() for record in records}
    annotations, results = tmp_path / "instances.json", tmp_path / "results.json"
    annotations.write_text(json.dumps(instances(masks)))
    form = CocoForm(COCO_CLASSES)
    write_coco_results(results, (e for n, labels in masks.items() for e in form.entries(f"{n:012d}", labels, 0.9)))
    assert scored(str(annotations), str(results)) == 1.0
    assert check_coco(results, annotations).images == sum(bool(labels.any()) for labels in masks.values())
    # A third of every photograph without labels: regions are still found, though not as well.
    for labels in masks.values():
        labels[:, : labels.shape[1] // 3] = 0
    write_coco_results(results, (e for n, labels in masks.items() for e in form.entries(f"{n:012d}", labels, 0.9)))
    assert 0.1 < scored(str(annotations), str(results)) < 0.9
