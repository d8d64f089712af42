"""COCO annotations: run-length codes, drawn masks, tags, and what can be wrong with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coco_files import CATEGORIES
from PIL import Image
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from rca_lightning.data.classes import COCO_CATEGORIES
from rca_lightning.data.coco import COCOSource
from rca_lightning.data.coco_shapes import CocoShapes, decode_rle
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

SQUARE = [[2, 2, 12, 2, 12, 12, 2, 12]]


def random_region(seed: int, height: int = 13, width: int = 7, share: float = 0.5) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) < share


def runs_of(region: np.ndarray) -> list[int]:
    flat = region.T.ravel()
    changes = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *changes, flat.size]).tolist()
    return [0, *runs] if flat[0] else runs


@pytest.mark.parametrize("seed", range(5))
def test_run_lengths_of_both_forms(seed: int) -> None:
    region = random_region(seed, share=[0.5, 0.02, 0.98, 0.0, 1.0][seed])
    compressed = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    for counts in (runs_of(region), compressed["counts"].decode()):
        decoded = decode_rle({"size": [13, 7], "counts": counts}, height=13, width=7, where="here")
        np.testing.assert_array_equal(decoded, region)


def test_long_compressed_runs() -> None:
    region = np.zeros((700, 900), dtype=bool)
    region[20:650, 100:130] = True
    region[690:, 899] = True
    code = coco_mask.encode(np.asfortranarray(region.astype(np.uint8)))
    decoded = decode_rle({"size": [700, 900], "counts": code["counts"].decode()}, height=700, width=900, where="here")
    np.testing.assert_array_equal(decoded, region)


@pytest.mark.parametrize(
    ("rle", "message"),
    [
        ({"size": [4, 5], "counts": [20]}, r"size \[4, 5\] in an image of size \[4, 4\]"),
        ({"counts": [16]}, "size None"),
        ({"size": [4, 4], "counts": [3]}, "do not add up to the 16"),
        ({"size": [4, 4], "counts": []}, "do not add up"),
        ({"size": [4, 4], "counts": [-4, 20]}, "do not add up"),
        ({"size": [4, 4], "counts": [2**62, 2**62, 2**62, 2**62, 16]}, "do not add up"),
        ({"size": [4, 4], "counts": [2**70]}, "cannot be read"),
        ({"size": [4, 4], "counts": "0"}, "do not add up"),
        ({"size": [4, 4], "counts": "`"}, "cannot be read"),
        ({"size": [4, 4], "counts": None}, "cannot be read"),
        ({"size": [4, 4], "counts": ["a"]}, "cannot be read"),
    ],
)
def test_bad_run_lengths(rle: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=f"here: .*{message}"):
        decode_rle(rle, height=4, width=4, where="here")


def draw(*objects: tuple[int, Any], height: int = 20, width: int = 30) -> np.ndarray:
    return CocoShapes.pack(objects, height=height, width=width, where="here").draw()


def test_smaller_objects_lie_over_larger_ones_in_any_order() -> None:
    large, small = (1, [[0, 0, 20, 0, 20, 15, 0, 15]]), (2, SQUARE)
    for mask in (draw(large, small), draw(small, large)):
        assert mask[5, 5] == 2
        assert mask[13, 15] == 1
        assert mask[18, 25] == 0


def test_polygon_with_two_corners_encloses_nothing() -> None:
    # Four numbers would be taken for a box by pycocotools.
    assert draw((1, [[2, 2, 12, 12]])).sum() == 0
    assert draw((1, [])).sum() == 0


@pytest.mark.parametrize(
    "segmentation",
    [
        [[0, 0, 5, 5, 1e9, 3]],
        [[0, 0, 5, 5, float("nan"), 3]],
        [[0, 0, 5, 5, 3]],
        [["a"] * 6],
        [[[0, 0], [5, 5], [1, 2]]],
        "text",
        None,
    ],
)
def test_bad_polygons(segmentation: Any) -> None:
    with pytest.raises(DataError, match="here: "):
        draw((1, segmentation))


@pytest.fixture
def make_coco(tmp_path: Path) -> Callable[..., Path]:
    """Three images: a dog (18), a toothbrush (90) over a dog, and one without any object."""

    def make(change: Callable[[dict[str, Any]], None] = lambda content: None) -> Path:
        root = tmp_path / "coco"
        for folder in ("annotations", "train2017", "val2017"):
            (root / folder).mkdir(parents=True)
        images = [{"id": n, "file_name": f"{n:012d}.jpg", "height": 20, "width": 30} for n in (3, 1, 2)]
        annotations = [
            {"image_id": 1, "category_id": 18, "segmentation": SQUARE},
            {"image_id": 2, "category_id": 90, "segmentation": [[4, 4, 8, 4, 8, 8, 4, 8]]},
            {"image_id": 2, "category_id": 18, "segmentation": SQUARE},
        ]
        content = {"images": images, "annotations": annotations, "categories": CATEGORIES}
        change(content)
        for part in ("train2017", "val2017"):
            (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
            for number in (1, 2, 3):
                Image.new("RGB", (30, 20)).save(root / part / f"{number:012d}.jpg")
        return root

    return make


def test_tags_and_masks_by_official_order(make_coco: Callable[..., Path]) -> None:
    records = COCOSource(make_coco(), year=2017).records("train", with_masks=True)
    assert [record.image_id for record in records] == ["000000000001", "000000000002", "000000000003"]
    assert [record.tags for record in records] == [(16,), (16, 79), ()]
    assert [sorted(set(record.mask.draw().ravel().tolist())) for record in records] == [[0, 17], [0, 17, 80], [0]]


def test_images_without_objects_are_left_out_of_training_only(
    make_coco: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    data = WSSSDataModule("coco2017", make_coco(), num_workers=0, crop_size=16, batch_size=2)
    data.setup("fit")
    assert "1 images left out of training, no tag: 000000000003" in caplog.text
    assert sorted(next(iter(data.train_dataloader()))["image_id"]) == ["000000000001", "000000000002"]
    assert [batch["image_id"][0][-1] for batch in data.val_dataloader()] == ["1", "2", "3"]


def test_images_folder_inside_images(make_coco: Callable[..., Path]) -> None:
    root = make_coco()
    (root / "images").mkdir()
    (root / "train2017").rename(root / "images" / "train2017")
    assert len(COCOSource(root, year=2017).records("train", with_masks=False)) == 3


def test_split_files_restrict_a_part(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = make_coco()
    (tmp_path / "small.txt").write_text("000000000002\n")
    source = COCOSource(root, year=2017, split_files={"val_small": str(tmp_path / "small.txt")})
    assert [record.image_id for record in source.records("val_small", with_masks=False)] == ["000000000002"]
    (tmp_path / "small.txt").write_text("000000000007\n")
    with pytest.raises(DataError, match="000000000007"):
        source.records("val_small", with_masks=False)


def test_own_annotation_file_and_tags(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    root = make_coco()
    (root / "annotations" / "instances_val2017.json").rename(root / "mine.json")
    (tmp_path / "t.csv").write_text("image,tags\n000000000003.jpg,teddy bear\n")
    source = COCOSource(
        root, year=2017, annotation_file="mine.json", image_dir="val2017", tags_file=str(tmp_path / "t.csv")
    )
    assert [record.tags for record in source.records("anything", with_masks=False)] == [(16,), (16, 79), (77,)]


def test_missing_parts_name_the_remedy(make_coco: Callable[..., Path]) -> None:
    root = make_coco()
    source = COCOSource(root, year=2017)
    with pytest.raises(ArgumentError, match=r"split='test'.*train and val only"):
        source.records("test", with_masks=False)
    (root / "train2017" / "000000000002.jpg").unlink()
    with pytest.raises(DataError, match=r"1 of the images of split 'train' are not in .*: 000000000002"):
        source.records("train", with_masks=False)
    (root / "annotations" / "instances_val2017.json").unlink()
    with pytest.raises(DatasetNotFoundError, match=r"instances_val2017\.json: no such file.*another split than 'val'"):
        source.records("val", with_masks=False)


def set_category(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = 12


def leave_root(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = "../../secret.jpg"


def drop_images(content: dict[str, Any]) -> None:
    del content["images"]


def same_file(content: dict[str, Any]) -> None:
    content["images"][0]["file_name"] = content["images"][1]["file_name"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_category, "1 of 3 annotations have a category_id that is not in 'categories': 12; correct"),
        (leave_root, "secret.jpg.*plain file name"),
        (drop_images, "not a COCO instances file"),
        (same_file, "'000000000001.jpg' and '000000000001.jpg' would share the id '000000000001'; rename"),
    ],
)
def test_bad_annotations(make_coco: Callable[..., Path], change: Callable[..., None], message: str) -> None:
    source = COCOSource(make_coco(change), year=2017)
    with pytest.raises(DataError, match=message):
        source.records("train", with_masks=False)


def test_annotation_of_another_size_than_the_image(make_coco: Callable[..., Path]) -> None:
    root = make_coco()
    Image.new("RGB", (31, 20)).save(root / "val2017" / "000000000001.jpg")
    data = WSSSDataModule("coco2017", root, num_workers=0)
    data.setup("validate")
    with pytest.raises(DataError, match=r"000000000001\.jpg is 30 x 20 pixels, but its image .* is 31 x 20"):
        next(iter(data.val_dataloader()))


def test_real_images_against_pycocotools(shared_root: Path) -> None:
    root = shared_root / "data" / "coco2017_mini"
    records = COCOSource(root, year=2017).records("train", with_masks=True)
    assert len(records) == 96
    assert sum(not record.tags for record in records) == 2
    api = COCO(str(root / "annotations" / "instances_train2017.json"))
    names = {category["id"]: category["name"] for category in api.loadCats(api.getCatIds())}
    assert names == COCO_CATEGORIES
    order = sorted(names)
    for record in records:
        objects = api.loadAnns(api.getAnnIds(imgIds=int(record.image_id)))
        assert record.tags == tuple(sorted({order.index(item["category_id"]) for item in objects}))
        expected = np.zeros(Image.open(record.image).size[::-1], dtype=np.uint8)
        drawn = [(api.annToMask(item).astype(bool), order.index(item["category_id"]) + 1) for item in objects]
        for region, value in sorted(drawn, key=lambda pair: pair[0].sum(), reverse=True):
            expected[region] = value
        np.testing.assert_array_equal(record.mask.draw(), expected)


def test_real_images_in_training(shared_root: Path) -> None:
    data = WSSSDataModule("coco2017", shared_root / "data" / "coco2017_mini", eval_split="train", num_workers=0)
    data.setup("fit")
    assert data.num_classes == 80
    assert len(data.train_dataloader()) == 94 // 16
    assert len(data.val_dataloader()) == 96


def number_as_text(content: dict[str, Any]) -> None:
    for annotation in content["annotations"]:
        annotation["image_id"] = str(annotation["image_id"])


def text_as_number(content: dict[str, Any]) -> None:
    for image in content["images"]:
        image["id"] = str(image["id"])


def orphans(content: dict[str, Any]) -> None:
    content["annotations"] += [{"image_id": 70 + number % 5, "category_id": 1} for number in range(9)]


def same_image_id(content: dict[str, Any]) -> None:
    content["images"][0]["id"] = content["images"][1]["id"]


def same_annotation_id(content: dict[str, Any]) -> None:
    for annotation, number in zip(content["annotations"], (5, 6, 5), strict=True):
        annotation["id"] = number


def category_as_text(content: dict[str, Any]) -> None:
    content["annotations"][0]["category_id"] = "18"


def drop(kind: str, field: str) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        content[kind][0]["id"] = 3
        del content[kind][0][field]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (number_as_text, r"3 of 3 annotations have an image_id that no image has: '1', '2' \(as text, there numbers\)"),
        (text_as_number, r"3 of 3 annotations have an image_id that no image has: 1, 2 \(as numbers, there text\)"),
        (orphans, r"9 of 12 annotations have an image_id that no image has: 70, 71, 72, \.\.\. \(5 in all\); correct"),
        (same_image_id, "image id 1 belongs to two images; give each its own"),
        (same_annotation_id, "annotation ids that stand there twice: 5; give each its own"),
        (category_as_text, r"1 of 3 annotations have a category_id .* 'categories': '18' \(as text, there numbers\)"),
        (drop("images", "id"), "entry 0 of 'images' has no 'id'; add it"),
        (drop("images", "file_name"), "entry 0 of 'images' has no 'file_name'; add it"),
        (drop("annotations", "image_id"), "annotation 3 has no 'image_id'; add it"),
        (drop("annotations", "category_id"), "annotation 3 has no 'category_id'; add it"),
        (lambda content: content.pop("annotations"), "no 'annotations' in it.*dataset='folder'"),
    ],
)
def test_ids_that_match_nothing_are_named(
    make_coco: Callable[..., Path], change: Callable[..., None], message: str
) -> None:
    source = COCOSource(make_coco(change), year=2017)
    with pytest.raises(DataError, match=rf"instances_train2017\.json: .*{message}"):
        source.records("train", with_masks=False)


def no_segmentation(content: dict[str, Any]) -> None:
    for number, annotation in enumerate(content["annotations"]):
        annotation["id"] = 40 + number
        annotation.pop("segmentation")


def empty_segmentation(content: dict[str, Any]) -> None:  # as tools write it for boxes
    for number, annotation in enumerate(content["annotations"]):
        annotation |= {"id": 40 + number, "segmentation": []}


def no_size(content: dict[str, Any]) -> None:
    for image in content["images"]:
        del image["width"]


@pytest.mark.parametrize(
    ("change", "without", "message"),
    [
        (no_segmentation, 2, "annotation 40 of image '000000000001.jpg' has no 'segmentation'"),
        (empty_segmentation, 2, "annotation 40 of image '000000000001.jpg' has no 'segmentation'"),
        (no_size, 3, "image '000000000001.jpg' has no 'width'"),
    ],
)
def test_tags_need_no_outlines_and_no_sizes(
    make_coco: Callable[..., Path],
    caplog: pytest.LogCaptureFixture,
    change: Callable[..., None],
    without: int,
    message: str,
) -> None:
    data = WSSSDataModule("coco2017", make_coco(change), num_workers=0, crop_size=16, batch_size=2)
    data.setup("fit")
    assert sorted(next(iter(data.train_dataloader()))["image_id"]) == ["000000000001", "000000000002"]
    assert "mask" not in next(iter(data.val_dataloader()))
    assert f"train2017.json: no mask for {without} of 3 images: {message}; add it to have masks" in caplog.text
    data.setup("predict")
    assert len(data.predict_dataloader()) == 3
    for stage in ("validate", "test"):
        with pytest.raises(DataError, match=rf"val2017\.json: {without} images have no mask: {message}"):
            data.setup(stage)


def test_masks_as_files_take_the_place_of_outlines(make_coco: Callable[..., Path]) -> None:
    root = make_coco(no_segmentation)
    (root / "masks").mkdir()
    for number in (1, 2, 3):
        Image.new("L", (30, 20), 17).save(root / "masks" / f"{number:012d}.png")
    data = WSSSDataModule("coco2017", root, num_workers=0, mask_dir="masks")
    data.setup("validate")
    assert int(next(iter(data.val_dataloader()))["mask"].max()) == 17


def test_more_classes_than_a_mask_holds(make_coco: Callable[..., Path]) -> None:
    def many(content: dict[str, Any]) -> None:
        content["categories"] = [{"id": number, "name": f"c{number}"} for number in range(300)]
        content["annotations"][0]["category_id"] = 254  # its mask value would be void

    source = COCOSource(make_coco(many), year=2017)
    records = source.records("train", with_masks=True)
    assert records[0].tags == (254,)
    assert not records.has_mask.any()
    with pytest.raises(ArgumentError, match="num_classes=300: give at most 254"):
        source.records("train", with_masks=True, need_masks=True)
