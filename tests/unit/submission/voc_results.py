"""A small data set in VOC's layout, and results for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from rca_lightning.data.classes import voc_palette
from rca_lightning.submission.voc import VOC_FOLDER

SIZES = {"2007_000001": (20, 30), "2007_000002": (31, 17), "2007_000003": (8, 9)}  # height, width


def make_photographs(root: Path) -> Path:
    (root / "JPEGImages").mkdir(parents=True)
    for image_id, (height, width) in SIZES.items():
        Image.new("RGB", (width, height)).save(root / "JPEGImages" / f"{image_id}.jpg")
    (root / "ids.txt").write_text("\n".join(SIZES) + "\n")
    return root


def labels_of(image_id: str) -> np.ndarray:
    height, width = SIZES[image_id]
    labels = np.zeros((height, width), dtype=np.uint8)
    labels[: height // 2, : width // 2] = 1 + list(SIZES).index(image_id)
    labels[-1, -1] = 20
    return labels


def save_mask(path: Path, labels: np.ndarray, *, palette: np.ndarray | None = None, **options) -> None:
    picture = Image.fromarray(labels)
    picture.putpalette((voc_palette() if palette is None else palette).flatten().tolist())
    picture.save(path, **options)


def make_results(results: Path) -> Path:
    """Write flawless masks and return the folder they are in."""
    folder = results / VOC_FOLDER
    folder.mkdir(parents=True)
    for image_id in SIZES:
        save_mask(folder / f"{image_id}.png", labels_of(image_id))
    return folder
