"""Writes label images as COCO instances: an annotation for each connected component."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

from rca_lightning.exchange.label_folder import LabelImage
from rca_lightning.exchange.polygons import Polygon
from rca_lightning.io.atomic import write_atomically
from rca_lightning.version import __version__

FILE = "instances.json"


def write_coco(
    images: Iterable[LabelImage], out: Path, class_names: Sequence[str], *, polygons: bool = False
) -> tuple[int, list[Path]]:
    """Write `instances.json` as the images come, whole or not at all.

    Images have the ids 1, 2, ... in their order, categories those of the label values. Each connected component of a
    class is an annotation (`iscrowd` 0) with area and box, as readers of instances expect; objects that touch are one.

    Args:
        images: the label images.
        out: folder of the file.
        class_names: the L foreground classes.
        polygons: whether segmentations are a polygon along the edges of pixels, which pycocotools draws exactly, in
            place of compressed run lengths.

    Returns:
        The number of annotations, and the file.
    """
    count = 0

    def write(file: IO[bytes]) -> None:
        nonlocal count
        # A JSON object takes one list after the other, and both are known only at the end: one is kept on the disk.
        with tempfile.TemporaryFile(dir=out) as annotations:
            file.write(json.dumps({"info": {"description": f"rca_lightning {__version__}"}}).encode()[:-1])
            file.write(b',\n"images": [')
            for number, image in enumerate(images, start=1):
                _write_entry(file, _image_entry(number, image), first=number == 1)
                for value, polygon in image.polygons():
                    count += 1
                    entry = {"id": count, "image_id": number, "category_id": value, "iscrowd": 0}
                    entry |= _segmentation(polygon, image.size, as_polygon=polygons)
                    _write_entry(annotations, entry, first=count == 1)
            file.write(b'\n],\n"annotations": [')
            annotations.seek(0)
            shutil.copyfileobj(annotations, file)
            categories = [{"id": value, "name": name} for value, name in enumerate(class_names, start=1)]
            file.write(b'\n],\n"categories": ' + json.dumps(categories).encode() + b"}\n")

    write_atomically(out / FILE, write)
    return count, [out / FILE]


def _write_entry(file: IO[bytes], entry: dict[str, Any], *, first: bool) -> None:
    file.write((b"\n" if first else b",\n") + json.dumps(entry).encode())


def _image_entry(number: int, image: LabelImage) -> dict[str, Any]:
    height, width = image.size
    return {"id": number, "file_name": image.photograph.name, "height": height, "width": width}


def _segmentation(polygon: Polygon, size: tuple[int, int], *, as_polygon: bool) -> dict[str, Any]:
    from pycocotools import mask as coco_mask

    numbers: list[int] = polygon.ravel().tolist()
    code = coco_mask.frPyObjects([numbers], *size)[0]
    run_lengths = {"size": list(size), "counts": code["counts"].decode("ascii")}
    return {
        "segmentation": [numbers] if as_polygon else run_lengths,
        "area": int(coco_mask.area(code)),
        "bbox": [int(number) for number in coco_mask.toBbox(code)],
    }
