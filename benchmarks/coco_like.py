"""An instances JSON like that of COCO train 2017, with as much in it, and empty image files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from rca_lightning.data.classes import COCO_CATEGORIES

_HEIGHT, _WIDTH = 480, 640
_SEGMENTATIONS = 2000  # different ones, used again and again
_RUN_LENGTHS = 0.012  # share of the objects that are crowds, with run lengths instead of polygons
_OBJECTS = 7.3  # an image


def generate(root: Path, images: int, *, seed: int = 0) -> int:
    """Write `annotations/instances_train2017.json` and `train2017`.

    Args:
        root: existing folder.
        images: how many.
        seed: of the random numbers.

    Returns:
        Bytes of the JSON.
    """
    random = np.random.default_rng(seed)
    for name in ("annotations", "train2017"):
        (root / name).mkdir()
    segmentations = [json.dumps(_segmentation(random)) for _ in range(_SEGMENTATIONS)]
    categories = list(COCO_CATEGORIES)
    path = root / "annotations" / "instances_train2017.json"
    number = 0
    with path.open("w") as file:
        file.write('{"images": [')
        for image in range(images):
            name = f"{image:012d}.jpg"
            (root / "train2017" / name).touch()
            entry = {"license": 3, "file_name": name, "height": _HEIGHT, "width": _WIDTH, "id": image}
            file.write(("," if image else "") + json.dumps(entry))
        file.write('], "annotations": [')
        for image, count in enumerate(random.poisson(_OBJECTS, images).tolist()):
            for segmentation, category in random.integers((_SEGMENTATIONS, len(categories)), size=(count, 2)).tolist():
                file.write(
                    f'{"," if number else ""}{{"segmentation": {segmentations[segmentation]}, "area": 702.1057, '
                    f'"iscrowd": 0, "image_id": {image}, "bbox": [473.07, 395.93, 38.65, 28.67], '
                    f'"category_id": {categories[category]}, "id": {number}}}'
                )
                number += 1
        listed = [
            {"supercategory": "thing", "id": category, "name": COCO_CATEGORIES[category]} for category in categories
        ]
        file.write('], "categories": ' + json.dumps(listed) + "}")
    return path.stat().st_size


def _segmentation(random: np.random.Generator) -> object:
    if random.random() < _RUN_LENGTHS:
        cuts = np.unique(random.integers(1, _HEIGHT * _WIDTH, 200))
        runs = np.diff([0, *cuts.tolist(), _HEIGHT * _WIDTH]).tolist()
        return {"size": [_HEIGHT, _WIDTH], "counts": runs}
    corners = max(3, int(random.gamma(2.0, 10.0)))  # 20 on average, that is 40 numbers
    angles = np.sort(random.uniform(0, 2 * np.pi, corners))
    around = random.uniform((80, 80), (_WIDTH - 80, _HEIGHT - 80))
    points = around + random.uniform(10, 80) * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return [np.round(points.reshape(-1), 2).tolist()]
