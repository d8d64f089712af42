"""Writes label images as files of LabelMe: one JSON file for each photograph."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rca_lightning.exchange.label_folder import LabelImage
from rca_lightning.io.atomic import write_atomically

_VERSION = "5.0.1"  # of LabelMe, whose form this is


def write_labelme(images: Iterable[LabelImage], out: Path, class_names: Sequence[str]) -> tuple[int, list[Path]]:
    """Write `<id>.json`, with the path to the photograph from there and without its pixels.

    Each connected component of a class is a polygon that can be moved by its corners. LabelMe opens the files from the
    folder `out`; give the folder of the photographs itself to have them beside these, where LabelMe looks for them.

    Args:
        images: the label images.
        out: folder of the files.
        class_names: the L foreground classes.

    Returns:
        The number of polygons, and the folder.
    """
    count = 0
    for image in images:
        shapes = [_shape(class_names[value - 1], polygon.tolist()) for value, polygon in image.polygons()]
        count += len(shapes)
        height, width = image.size
        content: dict[str, Any] = {
            "version": _VERSION,
            "flags": {},
            "shapes": shapes,
            "imagePath": _path_from(out, image.photograph),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        _write_json(out / f"{image.image_id}.json", content)
    return count, [out]


def _shape(name: str, corners: list[list[int]]) -> dict[str, Any]:
    return {"label": name, "points": corners, "group_id": None, "shape_type": "polygon", "flags": {}}


def _path_from(folder: Path, photograph: Path) -> str:
    try:
        return Path(os.path.relpath(photograph.resolve(), folder.resolve())).as_posix()
    except ValueError:  # another drive of Windows
        return photograph.resolve().as_posix()


def _write_json(path: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, ensure_ascii=False, indent=1)
    write_atomically(path, lambda file: file.write(text.encode()))
