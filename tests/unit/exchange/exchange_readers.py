"""Readers of the formats, as plain as their descriptions: a pixel is in a polygon if its centre is."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote
from xml.etree import ElementTree

import numpy as np
import yaml
from PIL import Image
from pycocotools.coco import COCO


def inside(polygon: Sequence[Sequence[float]], x: float, y: float) -> bool:
    """Even-odd rule: whether a ray to the right crosses the outline an odd number of times."""
    odd = False
    for number in range(len(polygon)):
        (x0, y0), (x1, y1) = polygon[number - 1], polygon[number]
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


def region_of(polygon: Sequence[Sequence[float]], shape: tuple[int, int]) -> np.ndarray:
    corners = np.asarray(polygon, dtype=np.float64).tolist()
    region = np.zeros(shape, dtype=np.bool_)
    for y in range(shape[0]):
        for x in range(shape[1]):
            region[y, x] = inside(corners, x + 0.5, y + 0.5)
    return region


def read_coco(out: Path, image_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """By pycocotools, which draws polygons and run lengths by its own rules."""
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(out / "instances.json")
    found = {}
    for image in coco.loadImgs(coco.getImgIds()):
        labels = np.zeros((image["height"], image["width"]), dtype=np.uint8)
        for annotation in coco.loadAnns(coco.getAnnIds(imgIds=image["id"])):
            labels[coco.annToMask(annotation) == 1] = annotation["category_id"]
        found[Path(image["file_name"]).stem] = labels
    assert list(found) == list(image_ids)
    return found


def read_yolo(out: Path, image_ids: Sequence[str]) -> dict[str, np.ndarray]:
    """As YOLO: the labels are beside the photographs, in single precision."""
    found = {}
    settings = yaml.safe_load((out / "data.yaml").read_text(encoding="utf-8"))
    for photograph in sorted((Path(settings["path"]) / settings["train"]).iterdir()):
        with Image.open(photograph) as image:
            width, height = image.size
        labels = np.zeros((height, width), dtype=np.uint8)
        for line in (out / "labels" / f"{photograph.stem}.txt").read_text().splitlines():
            value, *numbers = line.split()
            corners = np.array(numbers, dtype=np.float32).astype(np.float64).reshape(-1, 2) * [width, height]
            labels[region_of(corners, labels.shape)] = int(value) + 1
        found[photograph.stem] = labels
    assert list(found) == list(image_ids)
    return found


def read_labelme(out: Path, image_ids: Sequence[str], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    found = {}
    for path in sorted(out.glob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        with Image.open(out / content["imagePath"]) as image:
            assert image.size == (content["imageWidth"], content["imageHeight"])
        labels = np.zeros((content["imageHeight"], content["imageWidth"]), dtype=np.uint8)
        for shape in content["shapes"]:
            assert shape["shape_type"] == "polygon"
            labels[region_of(shape["points"], labels.shape)] = class_names.index(shape["label"]) + 1
        found[path.stem] = labels
    assert list(found) == list(image_ids)
    return found


def read_label_studio(out: Path, image_ids: Sequence[str], class_names: Sequence[str]) -> dict[str, np.ndarray]:
    interface = ElementTree.parse(out / "config.xml").getroot()
    (control,) = (child for child in interface if child.get("toName"))
    assert [label.get("value") for label in control] == list(class_names)
    found = {}
    for task in json.loads((out / "tasks.json").read_text()):
        image_id = Path(unquote(task["data"]["image"])).stem
        (prediction,) = task["predictions"]
        labels = None
        for result in prediction["result"]:
            assert (result["from_name"], result["to_name"]) == (control.get("name"), control.get("toName"))
            assert result["type"] == control.tag.lower()
            height, width = result["original_height"], result["original_width"]
            labels = np.zeros((height, width), dtype=np.uint8) if labels is None else labels
            value = result["value"]
            if result["type"] == "brushlabels":
                (name,) = value["brushlabels"]
                region = read_brush(value["rle"]).reshape(height, width, 4)[:, :, 3] == 255
            else:
                (name,) = value["polygonlabels"]
                region = region_of(np.array(value["points"]) * [width, height] / 100, labels.shape)
            labels[region] = class_names.index(name) + 1
        found[image_id] = labels
    assert list(found) == list(image_ids)
    return found


def read_brush(code: Sequence[int]) -> np.ndarray:
    """Values of a brush region, bit by bit: a head, then runs of one value and stretches of single ones."""
    bits = "".join(f"{byte:08b}" for byte in code)
    position = 0

    def take(size: int) -> int:
        nonlocal position
        position += size
        return int(bits[position - size : position], 2)

    values = np.zeros(take(32), dtype=np.uint8)
    value_bits = take(5) + 1
    length_bits = [take(4) + 1 for _ in range(4)]
    done = 0
    while done < values.size:
        is_run = take(1)
        length = take(length_bits[take(2)]) + 1
        if is_run:
            values[done : done + length] = take(value_bits)
        else:
            values[done : done + length] = [take(value_bits) for _ in range(length)]
        done += length
    assert done == values.size
    return values
