"""A COCO folder of random objects for tests of its index."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rca_lightning.data.classes import COCO_CATEGORIES

HEIGHT, WIDTH = 20, 30
CATEGORIES = [{"id": number, "name": name, "supercategory": "thing"} for number, name in COCO_CATEGORIES.items()]


def write_coco(root: Path, *, images: int = 12, seed: int = 0) -> Path:
    """Polygons and run lengths in images of 30 x 20 pixels; the last image shows nothing."""
    random = np.random.default_rng(seed)
    for folder in ("annotations", "train2017"):
        (root / folder).mkdir(parents=True)
    entries, annotations = [], []
    for number in range(images):
        name = f"{number:012d}.jpg"
        Image.new("RGB", (WIDTH, HEIGHT)).save(root / "train2017" / name)
        entries.append({"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH})
        for _ in range(int(random.integers(1, 5)) if number < images - 1 else 0):
            category = int(random.choice(list(COCO_CATEGORIES)))
            annotations.append({"image_id": number, "category_id": category, "segmentation": _segmentation(random)})
    content = {"images": entries[::-1], "annotations": annotations, "categories": CATEGORIES}
    (root / "annotations" / "instances_train2017.json").write_text(json.dumps(content))
    return root


def _segmentation(random: np.random.Generator) -> Any:
    if random.random() < 0.3:
        first, second = sorted(random.integers(1, HEIGHT * WIDTH, 2).tolist())
        return {"size": [HEIGHT, WIDTH], "counts": [first, second - first, HEIGHT * WIDTH - second]}
    corners = random.uniform((0, 0), (WIDTH, HEIGHT), (6, 2))
    return [np.round(corners.reshape(-1), 2).tolist()]
