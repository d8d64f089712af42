"""Results in the form of COCO: one region an image and class, as compressed run lengths."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.atomic import write_atomically
from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES
from rca_lightning.errors import ArgumentError

_COCO_NAME = re.compile(r"(?:COCO_\w+_)?(\d{1,12})")  # 000000000139, COCO_val2014_000000000042


class CocoForm:
    """How images and classes of one data set are called in a results file.

    Where the classes are the 80 of COCO, a class has the category id of COCO, and an image named as COCO's are has
    the number in its name. Everywhere else the category id is the label value, and an image has its own id.

    Args:
        class_names: the L foreground classes in the order of their label values.

    Example:
        >>> CocoForm(["cat", "dog"]).image_id("000000000139")
        '000000000139'
        >>> CocoForm(COCO_CLASSES).image_id("000000000139")
        139
    """

    def __init__(self, class_names: Sequence[str]) -> None:
        self._is_coco = tuple(class_names) == COCO_CLASSES
        self._categories = tuple(COCO_CATEGORIES) if self._is_coco else tuple(range(1, len(class_names) + 1))

    def image_id(self, name: str) -> int | str:
        """The id of an image in the file.

        Args:
            name: name of the photograph without its ending.
        """
        match = _COCO_NAME.fullmatch(name) if self._is_coco else None
        return name if match is None else int(match[1])

    def entries(self, name: str, labels: npt.NDArray[np.uint8], score: float) -> list[dict[str, Any]]:
        """The entries of one image, in the order of its label values.

        Args:
            name: name of the photograph without its ending.
            labels: `(H, W)`, 0 background, 1..L classes.
            score: confidence in `[0, 1]`, the same for all regions.

        Returns:
            For each class that occurs `{"image_id", "category_id", "segmentation": {"size": [H, W], "counts": str},
            "score"}`.

        Raises:
            ArgumentError: a value above L, or a score out of its range.
        """
        if not (math.isfinite(score) and 0 <= score <= 1):
            raise ArgumentError("score", score, f"give a confidence in [0, 1] for {name!r}")
        values = [int(value) for value in np.unique(labels) if value > 0]
        if values and values[-1] > len(self._categories):
            raise ArgumentError("labels", values[-1], f"give values up to {len(self._categories)} for {name!r}")
        return [
            {
                "image_id": self.image_id(name),
                "category_id": self._categories[value - 1],
                "segmentation": encode_rle(labels == value),
                "score": score,
            }
            for value in values
        ]


def encode_rle(region: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Encode a region `(H, W)` as `{"size": [H, W], "counts": compressed run lengths}`.

    Example:
        >>> encode_rle(np.array([[False, True], [False, True]]))
        {'size': [2, 2], 'counts': '22'}
    """
    from pycocotools import mask as coco_mask

    code = coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
    return {"size": [int(side) for side in code["size"]], "counts": code["counts"].decode("ascii")}


def write_coco_results(path: Path, entries: Iterable[dict[str, Any]]) -> int:
    """Write entries as they come, one a line; the file is whole or not there.

    Args:
        path: the JSON file.
        entries: see `CocoForm.entries`; only one is held at a time.

    Returns:
        How many there were.

    Raises:
        OSError: the file cannot be written.
    """
    count = 0

    def write(file: Any) -> None:
        nonlocal count
        file.write(b"[")
        for entry in entries:
            file.write(b",\n" if count else b"\n")
            file.write(json.dumps(entry, allow_nan=False).encode())
            count += 1
        file.write(b"\n]\n")

    write_atomically(path, write)
    return count
