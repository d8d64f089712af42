"""Label images in four formats: what is read back is what was written."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from tests.folder_contents import file_names
from tests.unit.exchange.exchange_readers import (
    read_brush,
    read_coco,
    read_label_studio,
    read_labelme,
    read_yolo,
)

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.errors import OutputError
from rca_lightning.exchange import yolo as yolo_module
from rca_lightning.exchange.coco import write_coco
from rca_lightning.exchange.label_folder import LabelFolder, LabelImage
from rca_lightning.exchange.label_studio import encode_brush, write_label_studio
from rca_lightning.exchange.labelme import write_labelme
from rca_lightning.exchange.yolo import write_yolo

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # inside pycocotools

NAMES = ["cat", 'a "big" <dog> & Käfer', "cow"]


def save(root: Path, labels: dict[str, np.ndarray]) -> LabelFolder:
    (root / "labels").mkdir()
    (root / "photographs").mkdir()
    for image_id, label in labels.items():
        Image.fromarray(label).save(root / "labels" / f"{image_id}.png")
        Image.new("RGB", label.shape[::-1]).save(root / "photographs" / f"{image_id}.jpg")
    return LabelFolder(root / "labels", root / "photographs", NAMES)


def without_void(label: np.ndarray) -> np.ndarray:
    return np.where(label == 255, 0, label)


def read_all(root: Path, folder: LabelFolder, ids: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """Write every format, and read it with the readers of these tests."""
    outs = {name: root / name for name in ("coco", "polygons", "yolo", "labelme", "brush", "studio")}
    for out in outs.values():
        out.mkdir()
    write_coco(folder, outs["coco"], NAMES)
    write_coco(folder, outs["polygons"], NAMES, polygons=True)
    write_yolo(folder, outs["yolo"], NAMES)
    write_labelme(folder, outs["labelme"], NAMES)
    write_label_studio(folder, outs["brush"], NAMES)
    write_label_studio(folder, outs["studio"], NAMES, polygons=True)
    return {
        "coco": read_coco(outs["coco"], ids),
        "polygons": read_coco(outs["polygons"], ids),
        "yolo": read_yolo(outs["yolo"], ids),
        "labelme": read_labelme(outs["labelme"], ids, NAMES),
        "brush": read_label_studio(outs["brush"], ids, NAMES),
        "studio": read_label_studio(outs["studio"], ids, NAMES),
    }


LABELS = arrays(
    np.uint8,
    array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=10),
    elements=st.sampled_from([0, 1, 1, 2, 3, 255]),
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(LABELS, min_size=1, max_size=2))
def test_any_label_image_comes_back_from_every_format(labels):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        written = {f"image {number} ü": label for number, label in enumerate(labels)}
        for name, read in read_all(root, save(root, written), sorted(written)).items():
            for image_id, label in written.items():
                found = np.zeros_like(label) if read[image_id] is None else read[image_id]  # a task without a region
                assert np.array_equal(found, without_void(label)), name


def rings() -> np.ndarray:
    """A ring with an island in its hole, touched at a corner by another class, and a diagonal up to the border."""
    label = np.zeros((31, 37), dtype=np.uint8)
    label[4:21, 3:22] = 1
    label[6:19, 5:20] = 0
    label[9:14, 9:15] = 1
    label[11, 11] = 255
    label[21:25, 22:30] = 2
    label[22:24, 24:26] = 3
    for step in range(10):
        label[step, 36 - step] = 2
    return label


def test_shapes_that_are_hard_to_draw_come_back(tmp_path):
    label = rings()
    large = np.kron(label, np.ones((1, 7), dtype=np.uint8))  # 259 pixels wide, which no digits hold exactly
    written = {"a": label, "b": large}
    for name, read in read_all(tmp_path, save(tmp_path, written), ["a", "b"]).items():
        for image_id in written:
            assert np.array_equal(read[image_id], without_void(written[image_id])), name


def test_coco_instances_have_box_and_area_of_their_component(tmp_path):
    folder = save(tmp_path, {"a": rings(), "b": np.zeros((5, 4), dtype=np.uint8)})
    assert write_coco(folder, tmp_path, NAMES) == (5, [tmp_path / "instances.json"])
    content = json.loads((tmp_path / "instances.json").read_text())
    assert content["categories"] == [{"id": number, "name": name} for number, name in enumerate(NAMES, start=1)]
    sizes = [(image["file_name"], image["height"], image["width"]) for image in content["images"]]
    assert sizes == [("a.jpg", 31, 37), ("b.jpg", 5, 4)]
    label = rings()
    found = [(entry["category_id"], entry["bbox"], entry["area"]) for entry in content["annotations"]]
    ring, island = label.copy()[4:21, 3:22], label[9:14, 9:15]
    assert found == [
        (1, [3, 4, 19, 17], int((ring == 1).sum() - (island == 1).sum())),
        (1, [9, 9, 6, 5], 29),
        (2, [27, 0, 10, 10], 10),
        (2, [22, 21, 8, 4], 28),
        (3, [24, 22, 2, 2], 4),
    ]
    assert [entry["id"] for entry in content["annotations"]] == [1, 2, 3, 4, 5]
    assert {entry["image_id"] for entry in content["annotations"]} == {1}


@pytest.mark.parametrize("polygons", [False, True])
def test_coco_is_read_by_this_library_too(tmp_path, polygons):
    write_coco(save(tmp_path, {"a": rings()}), tmp_path, NAMES, polygons=polygons)
    annotations = json.loads((tmp_path / "instances.json").read_text())["annotations"]
    objects = [(entry["category_id"], entry["segmentation"]) for entry in annotations]
    drawn = CocoShapes.pack(objects, height=31, width=37, where="a").draw()
    assert np.array_equal(drawn, without_void(rings()))


def test_coco_without_any_object_is_json(tmp_path):
    write_coco(save(tmp_path, {"a": np.zeros((5, 4), dtype=np.uint8)}), tmp_path, NAMES)
    assert json.loads((tmp_path / "instances.json").read_text())["annotations"] == []


@pytest.mark.parametrize(("write", "name"), [(write_coco, "instances.json"), (write_label_studio, "tasks.json")])
def test_what_breaks_off_leaves_the_older_file(tmp_path, write, name):
    folder = save(tmp_path, {"a": rings()})
    out = tmp_path / "out"
    out.mkdir()
    write(folder, out, NAMES)
    before = (out / name).read_bytes()

    def breaks_off() -> Iterator[LabelImage]:
        yield from folder
        raise KeyboardInterrupt

    files = file_names(out)
    with pytest.raises(KeyboardInterrupt):
        write(breaks_off(), out, NAMES)
    assert (out / name).read_bytes() == before
    assert file_names(out) == files


@pytest.mark.parametrize("write", [write_coco, write_yolo, write_labelme, write_label_studio])
def test_one_label_image_is_held_at_a_time(tmp_path, write):
    save(tmp_path, {"a": rings()})
    photograph = tmp_path / "photographs" / "a.jpg"
    alive: set[int] = set()

    class Counted(np.ndarray):
        def __del__(self) -> None:
            alive.discard(id(self))

    def many() -> Iterator[LabelImage]:
        for number in range(20):
            assert len(alive) <= 1
            label = np.zeros((4, 4), dtype=np.uint8).view(Counted)
            alive.add(id(label))
            image = LabelImage(f"{number}", photograph, label)
            del label
            yield image
            del image

    write(many(), tmp_path, NAMES)


def test_yolo_names_classes_and_links_photographs(tmp_path):
    folder = save(tmp_path, {"a": np.array([[0, 2]], dtype=np.uint8), "b": np.zeros((1, 2), dtype=np.uint8)})
    out = tmp_path / "out"
    for _ in range(2):  # written again over what is there
        assert write_yolo(folder, out, NAMES) == (1, [out / "data.yaml"])
    assert (out / "labels" / "a.txt").read_text() == "1 0.5 0 1 0 1 1 0.5 1\n"
    assert (out / "labels" / "b.txt").read_text() == ""
    assert yaml.safe_load((out / "data.yaml").read_text())["names"] == dict(enumerate(NAMES))
    assert (out / "images" / "a.jpg").samefile(tmp_path / "photographs" / "a.jpg")
    assert file_names(out) == ["data.yaml", "images/a.jpg", "images/b.jpg", "labels/a.txt", "labels/b.txt"]


def test_yolo_copies_where_no_links_are_and_keeps_other_files(tmp_path, monkeypatch):
    def no_links(self: Path, target: Path) -> None:
        raise OSError("links are not permitted")

    folder = save(tmp_path, {"a": np.array([[0, 2]], dtype=np.uint8)})
    monkeypatch.setattr(yolo_module.Path, "symlink_to", no_links)
    for _ in range(2):
        write_yolo(folder, tmp_path / "out", NAMES)
    copy = tmp_path / "out" / "images" / "a.jpg"
    assert not copy.is_symlink()
    assert copy.read_bytes() == (tmp_path / "photographs" / "a.jpg").read_bytes()
    copy.write_bytes(b"mine")
    with pytest.raises(OutputError, match=r"images/a\.jpg is there and is another file than .*remove it"):
        write_yolo(folder, tmp_path / "out", NAMES)
    assert copy.read_bytes() == b"mine"


def test_yolo_beside_the_photographs_leaves_them(tmp_path):
    save(tmp_path, {"a": np.array([[0, 2]], dtype=np.uint8)})
    os.rename(tmp_path / "photographs", tmp_path / "images")  # noqa: PTH104
    before = (tmp_path / "images" / "a.jpg").read_bytes()
    write_yolo(LabelFolder(tmp_path / "labels", tmp_path / "images", NAMES), tmp_path, NAMES)
    assert not (tmp_path / "images" / "a.jpg").is_symlink()
    assert (tmp_path / "images" / "a.jpg").read_bytes() == before


def test_link_of_another_photograph_is_replaced(tmp_path):
    folder = save(tmp_path, {"a": np.array([[0, 2]], dtype=np.uint8)})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").symlink_to(tmp_path / "gone.jpg")
    write_yolo(folder, tmp_path, NAMES)
    assert (tmp_path / "images" / "a.jpg").samefile(tmp_path / "photographs" / "a.jpg")


def test_address_of_photographs_in_label_studio(tmp_path):
    folder = save(tmp_path, {"a b": np.array([[0, 2]], dtype=np.uint8)})
    for image_url, expected in [
        (None, "/data/local-files/?d=photographs/a%20b.jpg"),
        ("https://host/x/", "https://host/x/a%20b.jpg"),
    ]:
        write_label_studio(folder, tmp_path, NAMES, image_url=image_url)
        (task,) = json.loads((tmp_path / "tasks.json").read_text())
        assert task["data"]["image"] == expected


@pytest.mark.parametrize("length", [1, 2, 3, 4, 5, 64, 65, 16384, 16385, 40000])
def test_brush_run_of_every_length(length):
    region = np.concatenate([np.ones(length), np.zeros(1), np.ones(2)]).astype(np.bool_)
    assert np.array_equal(read_brush(encode_brush(region)), np.repeat(region, 4) * 255)
