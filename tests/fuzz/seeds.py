"""Sound files that are damaged afterwards."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rca_lightning.data.classes import voc_palette
from rca_lightning.data.synthetic.scene import render_scene

SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "voc2012_mini"
SIZE = (20, 30)  # of the photograph that masks, annotations and maps belong to
CLASSES = ("cat", "dog", "person")


def _saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def _real(folder: str, ending: str, count: int) -> list[bytes]:
    return [path.read_bytes() for path in sorted((SHARED / folder).glob(f"*{ending}"))[:count]]


def photographs() -> list[bytes]:
    scene = Image.fromarray(render_scene(np.random.default_rng(0), 64).image)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    grey = Image.fromarray(np.arange(600, dtype=np.uint16).reshape(20, 30) * 100)
    palette = scene.convert("P")
    return [
        _saved(scene, "JPEG", quality=90),
        _saved(scene, "JPEG", progressive=True, exif=exif, icc_profile=bytes(200)),
        _saved(scene.convert("CMYK"), "JPEG"),
        _saved(scene, "PNG"),
        _saved(palette, "PNG", transparency=bytes(range(256))),
        _saved(grey, "PNG"),
        _saved(scene, "TIFF", compression="tiff_lzw", exif=exif),
        _saved(scene, "TIFF", compression="jpeg"),
        _saved(grey, "TIFF"),
        _saved(scene, "WEBP"),
        _saved(scene, "BMP"),
        _saved(palette, "GIF"),
        *_real("JPEGImages", ".jpg", 4),
    ]


def masks() -> list[bytes]:
    values = np.zeros(SIZE, dtype=np.uint8)
    values[5:12, 5:20], values[0] = 2, 255
    palette = Image.fromarray(values)
    palette.putpalette(voc_palette().tobytes())
    wide = Image.fromarray(values.astype(np.uint16))
    one = Image.fromarray(values > 0)
    return [
        *(_saved(image, "PNG") for image in (Image.fromarray(values), palette, wide, one)),
        *_real("SegmentationClass", ".png", 4),
    ]


def annotations() -> list[bytes]:
    objects = "".join(
        f"<object><name>{name}</name><difficult>0</difficult><bndbox><xmin>1</xmin><ymin>2</ymin><xmax>9</xmax>"
        "<ymax>9</ymax></bndbox></object>"
        for name in CLASSES
    )
    made = f'<?xml version="1.0" encoding="utf-8"?><annotation><filename>a.jpg</filename>{objects}</annotation>'
    return [made.encode(), b"<annotation/>", *_real("Annotations", ".xml", 4)]


def instances() -> list[bytes]:
    height, width = SIZE
    polygon = [[1.5, 2, 20, 2.5, 25, 18, 3, 15]]
    counts = [50, 30, height * width - 80]
    shown = [polygon, {"size": [height, width], "counts": counts}, {"size": [height, width], "counts": "b1n0hb0"}]
    content = {
        "images": [{"id": number, "file_name": f"{number}.jpg", "height": height, "width": width} for number in (1, 2)],
        "annotations": [
            {"id": number, "image_id": 1 + number % 2, "category_id": 1 + number, "segmentation": segmentation}
            for number, segmentation in enumerate(shown)
        ],
    }
    categories = [{"id": number, "name": f"class {number}"} for number in (1, 2, 3)]
    return [
        json.dumps(content | {"categories": categories}).encode(),
        json.dumps({"categories": categories, "images": content["images"], "annotations": []}).encode(),
    ]


def tag_files() -> list[bytes]:
    return [
        b"image,tags\n1.jpg,cat;dog\n2,person\n",
        b'image,tags\r\n"1.jpg","cat"\r\n2.JPG,\r\n',
        b"1 cat dog\n2.jpg person\n",
        "\ufeff1 cat\n2\n".encode(),
        b"1\n2\n",
        b"/JPEGImages/1.jpg /SegmentationClassAug/1.png\n/JPEGImages/2.jpg /SegmentationClassAug/2.png\n",
    ]


def stored_maps() -> list[bytes]:
    found = []
    for count in (0, 1, 3):
        arrays = {
            "classes": np.arange(count, dtype=np.int64),
            "size": np.array(SIZE, dtype=np.int64),
            "confidence": np.float32(0.5),
            "coverage": np.full(count, 0.2, dtype=np.float32),
            "probabilities": np.full(count, 0.9, dtype=np.float32),
            "ignored": np.float32(0),
            "maps": np.random.default_rng(count).random((count, *SIZE)).astype(np.float16),
        }
        for save in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            save(file, **arrays)
            found.append(file.getvalue())
    return found


def arrays() -> list[bytes]:
    """Maps of a class each, and of a tag each."""
    found = []
    for count in (2, 3):
        for dtype in (np.float16, np.float32, np.uint8, ">f8"):
            file = io.BytesIO()
            maps = np.random.default_rng(count).random((count, *SIZE)) * 9
            np.save(file, np.asfortranarray(maps.astype(dtype)) if dtype == np.float32 else maps.astype(dtype))
            found.append(file.getvalue())
    return found


def proposals() -> list[bytes]:
    height, width = SIZE
    counts = [50, 30, height * width - 80]
    codes = [{"size": [height, width], "counts": shown} for shown in (counts, "b1n0hb0")]
    masks = [{"segmentation": code, "area": 30, "predicted_iou": 0.9, "bbox": [1, 2, 3, 4]} for code in codes]
    return [json.dumps(content).encode() for content in (masks, {"image": {}, "annotations": masks}, [])]


def segments() -> list[bytes]:
    values = np.random.default_rng(0).integers(0, 900, SIZE)
    palette = Image.fromarray((values % 200).astype(np.uint8))
    palette.putpalette(voc_palette().tobytes())
    wide, grey = Image.fromarray(values.astype(np.uint16)), Image.fromarray((values % 7).astype(np.uint8))
    return [_saved(image, "PNG") for image in (wide, grey, palette)]


def scores() -> list[bytes]:
    """Score files of seeds and of label images."""
    protocol = {"split": {"name": "val", "images": 2}, "threshold": "default", "scales": [1.0], "commit": None}
    content = {
        "split": "val",
        "images": 2,
        "miou": 0.5,
        "threshold": None,
        "per_class_iou": dict.fromkeys(("background", *CLASSES), 0.5) | {"dog": None},
        "protocol": protocol,
    }
    of_seeds = content | {"threshold": 0.2, "oracle_threshold": 0.3, "oracle_miou": 0.75}
    return [json.dumps(one, indent=2).encode() for one in (content, of_seeds)]


def image_counts() -> list[bytes]:
    """Counts of images beside score files of seeds and of label images."""
    found = []
    for thresholds in ((), (0.2, 0.3)):
        rng, cells = np.random.default_rng(len(thresholds)), 9
        arrays = {
            "ids": np.array(["1", "2"]),
            "num_classes": np.array(len(CLASSES)),
            "thresholds": np.array(thresholds, dtype=np.float64),
            "image": np.arange(cells, dtype=np.int32) // 5,
            "true": rng.integers(0, len(CLASSES) + 1, cells, dtype=np.int32),
            "drawn": rng.integers(1, len(CLASSES) + 1, cells, dtype=np.int32),
            "interval": rng.integers(0, len(thresholds) + 1, cells, dtype=np.int16),
            "pixels": rng.integers(5, 99, cells, dtype=np.int32),
            "near": rng.integers(0, 5, cells, dtype=np.int32),
        }
        for save in (np.savez, np.savez_compressed):
            file = io.BytesIO()
            save(file, **arrays)
            found.append(file.getvalue())
    return found


def checkpoints() -> list[bytes]:
    from tests.fuzz.tiny import Tiny

    content = {
        "state_dict": Tiny(num_classes=3).state_dict(),
        "pytorch-lightning_version": "2.6.0",
        "hyper_parameters": {"num_classes": 3, "class_names": list(CLASSES), "scales": (1.0, 2.0), "lr": 0.1},
        "epoch": 3,
        "callbacks": {"RegionMemoryCallback": {"memory": {"slots": 4, "ids": torch.arange(5)}}},
    }
    found = []
    for kept in (content, content["state_dict"]):
        for as_archive in (True, False):
            file = io.BytesIO()
            torch.save(kept, file, _use_new_zipfile_serialization=as_archive)
            found.append(file.getvalue())
    return found
