"""Writes label images as a data set for YOLO segmentation: a text file for each photograph, and `data.yaml`."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

import yaml

from rca_lightning.errors import OutputError
from rca_lightning.exchange.label_folder import LabelImage
from rca_lightning.io.atomic import write_atomically

FILE = "data.yaml"
_HEAD = "# train and val are the same photographs; name lists of your own where scores are to count\n"


def write_yolo(images: Iterable[LabelImage], out: Path, class_names: Sequence[str]) -> tuple[int, list[Path]]:
    """Write `labels/<id>.txt`, links to the photographs in `images/`, and `data.yaml` last.

    A line is one connected component of a class, since each line is an object to those who train on it:
    `class x1 y1 x2 y2 ...`, the class counted from 0 and corners in shares of width and height, with eight digits: no
    corner moves by a thousandth of a pixel. Readers look for labels beside `images/`, hence the links (copies where a
    disk has no links). A photograph without objects has an empty file, which YOLO takes for background.

    Args:
        images: the label images.
        out: folder of the data set.
        class_names: the L foreground classes.

    Returns:
        The number of lines, and `data.yaml`.

    Raises:
        OutputError: `images/` holds another file where a link belongs.
    """
    count = 0
    for image in images:
        lines = [_line(value, polygon.tolist(), image.size) for value, polygon in image.polygons()]
        count += len(lines)
        _link(image.photograph, out / "images" / f"{image.image_id}{image.photograph.suffix}")
        _write_text(out / "labels" / f"{image.image_id}.txt", "".join(lines))
    content = {"path": str(out.resolve()), "train": "images", "val": "images", "names": dict(enumerate(class_names))}
    _write_text(out / FILE, _HEAD + yaml.safe_dump(content, sort_keys=False, allow_unicode=True))
    return count, [out / FILE]


def _line(value: int, corners: list[list[int]], size: tuple[int, int]) -> str:
    height, width = size
    numbers = (f"{x / width:.8g} {y / height:.8g}" for x, y in corners)
    return f"{value - 1} {' '.join(numbers)}\n"


def _link(photograph: Path, target: Path) -> None:
    """Link to a photograph; leave it where it is there already."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.exists() and target.samefile(photograph):
        return
    if target.is_symlink():
        target.unlink()
    elif target.exists() and not _is_copy(target, photograph):
        raise OutputError(
            f"out: {target} is there and is another file than {photograph}; remove it or give another out"
        )
    if not target.exists():
        try:
            target.symlink_to(photograph.resolve())
        except OSError:  # no links on this disk, or not for this user
            with photograph.open("rb") as source:
                write_atomically(target, lambda file: shutil.copyfileobj(source, file))


def _is_copy(target: Path, photograph: Path) -> bool:
    return os.path.getsize(target) == os.path.getsize(photograph) and target.read_bytes() == photograph.read_bytes()  # noqa: PTH202


def _write_text(path: Path, text: str) -> None:
    write_atomically(path, lambda file: file.write(text.encode()))
