"""Classes of an instances file: its own categories by id and name, in tags, masks, the kept index and results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CATEGORIES
from PIL import Image

from rca_lightning.data import coco_categories, coco_index
from rca_lightning.data.classes import COCO_CLASSES
from rca_lightning.data.coco import COCOSource
from rca_lightning.data.coco_categories import COCO, read_categories
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

DAMAGE = [{"id": 2, "name": "rust"}, {"id": 1, "name": "crack"}]
LEFT, RIGHT = [[2, 2, 12, 2, 12, 12, 2, 12]], [[16, 2, 26, 2, 26, 12, 16, 12]]


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Path]:
    """Images im1 (category 1 on the left) and im2 (category 2 on the right) with ids 11 and 12, for train and val."""

    def write(categories: Any, *, part: str = "train2017", **changes: Any) -> Path:
        root = tmp_path / "own"
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / part).mkdir(exist_ok=True)
        for name in ("im1", "im2"):
            Image.new("RGB", (30, 20)).save(root / part / f"{name}.jpg")
        content = {
            "images": [{"id": 10 + n, "file_name": f"im{n}.jpg", "height": 20, "width": 30} for n in (1, 2)],
            "annotations": [
                {"id": 1, "image_id": 11, "category_id": 1, "segmentation": LEFT},
                {"id": 2, "image_id": 12, "category_id": 2, "segmentation": RIGHT},
            ],
            "categories": categories,
        }
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content | changes))
        return root

    return write


def test_own_categories_are_the_classes_in_the_order_of_their_ids(make: Callable[..., Path]) -> None:
    root = make(DAMAGE)
    data = WSSSDataModule("coco2017", root, eval_split="train", num_workers=0)
    assert data.class_names == ["crack", "rust"]
    assert data.num_classes == 2
    data.setup("validate")
    first, second = data.val_dataloader().dataset
    assert (first["tags"].tolist(), second["tags"].tolist()) == ([1, 0], [0, 1])
    assert (int(first["mask"][5, 5]), int(second["mask"][5, 20])) == (1, 2)


def test_gaps_and_high_ids_are_counted_away(make: Callable[..., Path]) -> None:
    annotations = [{"image_id": 12, "category_id": 700, "segmentation": LEFT}]
    categories = [{"id": 700, "name": "rust"}, {"id": 0, "name": "crack"}, {"id": 30, "name": "spall"}]
    source = COCOSource(make(categories, annotations=annotations), year=2017)
    assert source.categories.names == ("crack", "spall", "rust")
    records = source.records("train", with_masks=True)
    assert [record.tags for record in records] == [(), (2,)]
    assert sorted(np.unique(records[1].mask.draw())) == [0, 3]


def test_ids_of_coco_under_other_numbers_are_no_categories_of_coco(make: Callable[..., Path]) -> None:
    shifted = [{"id": number, "name": name} for number, name in enumerate(COCO_CLASSES)]
    data = WSSSDataModule("coco2017", make(shifted), eval_split="train")
    data.setup("validate")
    assert [record.tags for record in data._eval.records] == [(1,), (2,)]  # bicycle and car, and not person and bicycle


def test_categories_of_coco_itself_are_its_80(make: Callable[..., Path]) -> None:
    assert WSSSDataModule("coco2017", make(CATEGORIES)).class_names == list(COCO_CLASSES)
    assert COCOSource(make(CATEGORIES[::-1]), year=2017).categories == COCO


def test_a_part_of_the_categories_of_coco_is_a_set_of_its_own(make: Callable[..., Path]) -> None:
    assert WSSSDataModule("coco2017", make(CATEGORIES[:2])).class_names == ["person", "bicycle"]


def test_train_and_val_must_have_the_same_categories(make: Callable[..., Path]) -> None:
    make(DAMAGE)
    root = make([{"id": 1, "name": "crack"}, {"id": 2, "name": "spall"}], part="val2017")
    data = WSSSDataModule("coco2017", root)
    assert data.class_names == ["crack", "rust"]
    message = (
        r"train2017\.json and .*val2017\.json have different categories: category 2 is 'rust' in the one and 'spall'"
    )
    with pytest.raises(DataError, match=message):
        data.setup("fit")
    assert WSSSDataModule("coco2017", root, train_split="val").class_names == ["crack", "spall"]
    assert WSSSDataModule("coco2017", root, train_split="val", eval_split="val").setup("fit") is None


def test_index_of_other_categories_is_not_read(make: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = make(DAMAGE)
    monkeypatch.setenv("RCA_CACHE", str(root / "cache"))
    monkeypatch.setattr(coco_index, "SMALL", 0)
    make(CATEGORIES, part="val2017")
    COCOSource(root, year=2017, splits=("val",)).records("val", with_masks=False)  # kept
    with pytest.raises(DataError, match="different categories"):
        COCOSource(root, year=2017, splits=("train",)).records("val", with_masks=False)


def test_classes_are_those_of_the_first_annotations_that_are_there(make: Callable[..., Path]) -> None:
    root = make(DAMAGE, part="val2017")
    assert WSSSDataModule("coco2017", root).class_names == ["crack", "rust"]
    assert WSSSDataModule("coco2014", root).class_names == list(COCO_CLASSES)  # no annotations of that year
    given = {"annotation_file": "annotations/instances_val2017.json", "image_dir": "val2017"}
    assert WSSSDataModule("coco2014", root, **given).class_names == ["crack", "rust"]
    with pytest.raises(DatasetNotFoundError, match=r"annotation_file='mine\.json': no such file"):
        WSSSDataModule("coco2017", root, annotation_file="mine.json")


def test_classes_that_change_before_setup_are_refused(make: Callable[..., Path]) -> None:
    data = WSSSDataModule("coco2017", make(DAMAGE), eval_split="train")
    make(CATEGORIES)
    with pytest.raises(ArgumentError, match=r"root='.*': its classes are now person, .*; make the data module anew"):
        data.setup("fit")


def test_tags_file_has_the_names_of_the_file(make: Callable[..., Path]) -> None:
    root = make(DAMAGE)
    (root / "tags.csv").write_text("image,tags\nim1,rust\n")
    source = COCOSource(root, year=2017, tags_file="tags.csv")
    assert [record.tags for record in source.records("train", with_masks=False)] == [(1,), (1,)]


def test_background_and_ignore_of_labelme_are_no_classes(
    make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    categories = [{"id": n, "name": name} for n, name in enumerate(["_background_", "crack", "__ignore__", "rust"])]
    annotations = [
        {"image_id": 11, "category_id": 1, "segmentation": [[0, 0, 29, 0, 29, 19, 0, 19]]},
        {"image_id": 11, "category_id": 0, "segmentation": LEFT},
        {"image_id": 11, "category_id": 2, "segmentation": RIGHT},
    ]
    data = WSSSDataModule("coco2017", make(categories, annotations=annotations), eval_split="train", num_workers=0)
    assert data.class_names == ["crack", "rust"]
    assert "category 0 '_background_' is no class; its objects are background (mask value 0)" in caplog.text
    assert "category 2 '__ignore__' is no class; its objects are void (mask value 255)" in caplog.text
    data.setup("validate")
    first, _ = data.val_dataloader().dataset
    assert first["tags"].tolist() == [1, 0]
    assert [int(first["mask"][5, x]) for x in (5, 14, 20)] == [0, 1, 255]


@pytest.mark.parametrize(
    ("categories", "message"),
    [
        ([], "no categories, so ids have no names"),
        ("crack", "no categories"),
        ([{"id": "1", "name": "crack"}], "category .*'1'.*; give it a whole number as 'id'"),
        ([{"id": True, "name": "crack"}], "give it a whole number"),
        ([{"id": 1}], "and a text as 'name'"),
        ([{"id": 1, "name": " "}], "and a text as 'name'"),
        ([{"id": 1, "name": "crack"}, {"id": 1, "name": "rust"}], "category 1 'rust' stands there twice"),
        ([{"id": 1, "name": "crack"}, {"id": 2, "name": "crack "}], "category 2 'crack' stands there twice"),
        ([{"id": 0, "name": "background"}], "none of its categories is a class"),
    ],
)
def test_bad_categories(make: Callable[..., Path], categories: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"instances_train2017\.json: .*{message}"):
        WSSSDataModule("coco2017", make(categories))


BIG = [{"n": "x" * 100}] * 100


@pytest.mark.parametrize(
    "order",
    [
        ["info", "categories", "images", "annotations"],
        ["info", "images", "annotations", "categories"],
        ["images", "annotations", "categories", "licenses"],
        ["images", "categories", "annotations"],
    ],
)
@pytest.mark.parametrize("indent", [None, 1])
def test_categories_of_a_large_file_are_found_wherever_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, order: list[str], indent: int | None
) -> None:
    monkeypatch.setattr(coco_categories, "_WINDOW", 500)
    # Objects may have a member of the same name, and texts may look like one.
    nested = [*BIG, {"categories": [{"id": 1, "name": "person"}], "note": '"categories": ['}]
    content = {"info": {"year": 1}, "licenses": [], "images": nested, "annotations": nested, "categories": DAMAGE}
    (tmp_path / "a.json").write_text(json.dumps({name: content[name] for name in order}, indent=indent))
    assert read_categories(tmp_path / "a.json").names == ("crack", "rust")


def test_a_nested_member_alone_is_not_taken_for_the_categories(tmp_path: Path) -> None:
    for text in ('{"info": {"categories": [{"id": 1, "name": "a"}]}}', '{"images": [], "x": {"categories": []}}', "[]"):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DataError, match="not a COCO instances file"):
            read_categories(tmp_path / "a.json")


def test_ids_for_results_are_those_of_the_file(make: Callable[..., Path]) -> None:
    data = WSSSDataModule("coco2017", make([{"id": 9, "name": "rust"}, *DAMAGE[1:]], annotations=[]))
    data.predict_split = "train"
    assert data.predict_coco_ids() == ((1, 9), {"im1": 11, "im2": 12})


def test_other_data_sets_have_no_ids_for_results(tmp_path: Path) -> None:
    assert WSSSDataModule("voc2012", tmp_path).predict_coco_ids() is None


def test_tags_of_images_that_are_not_there_are_counted(
    make: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    root = make(DAMAGE)
    (root / "tags.csv").write_text("image,tags\n1,rust\n2,crack\n")
    COCOSource(root, year=2017, tags_file="tags.csv").records("train", with_masks=False)
    message = "tags_file='tags.csv': 2 of its 2 images are not in split 'train', so their tags are not used: 1, 2"
    assert message in caplog.text


def test_names_of_images_and_categories_match_in_either_normal_form(make: Callable[..., Path]) -> None:
    one, two = "caf\u00e9", "cafe\u0301"
    root = make(
        [{"id": 1, "name": two}],
        images=[{"id": 11, "file_name": f"{one}.jpg", "height": 20, "width": 30}],
        annotations=[{"image_id": 11, "category_id": 1, "segmentation": LEFT}],
    )
    Image.new("RGB", (30, 20)).save(root / "train2017" / f"{two}.jpg")
    (root / "tags.csv").write_text(f"image,tags\n{two},{one}\n")
    source = COCOSource(root, year=2017, tags_file="tags.csv")
    assert source.categories.names == (one,)
    assert [(record.image_id, record.tags) for record in source.records("train", with_masks=True)] == [(one, (0,))]
