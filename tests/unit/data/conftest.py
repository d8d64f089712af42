"""Small data sets written anew for each test."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.data.classes import VOC_CLASSES


def write_photo(path: Path, *, height: int = 40, width: int = 60, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def write_mask(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values.astype(np.uint8)).save(path)


@pytest.fixture
def make_voc(tmp_path: Path) -> Callable[..., Path]:
    """Writes a VOC tree of `count` images; image number c shows class c modulo 20 in its middle."""

    def make(count: int = 5, *, masks: bool = True, tags: bool = True, height: int = 40, width: int = 60) -> Path:
        root = tmp_path / "voc"
        ids = [f"img_{number:03d}" for number in range(count)]
        lines = []
        for number, image_id in enumerate(ids):
            write_photo(root / "JPEGImages" / f"{image_id}.jpg", height=height, width=width, seed=number)
            label = number % 20
            if masks:
                mask = np.zeros((height, width))
                mask[10:30, 20:40] = label + 1
                write_mask(root / "SegmentationClass" / f"{image_id}.png", mask)
            lines.append(f"{image_id} {VOC_CLASSES[label]}")
        if tags:
            (root / "image_labels.txt").write_text("\n".join(lines))
        lists = root / "ImageSets" / "Segmentation"
        lists.mkdir(parents=True, exist_ok=True)
        for split in ("train", "val"):
            (lists / f"{split}.txt").write_text("\n".join(ids))
        return root

    return make
