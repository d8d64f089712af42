"""Class names and colours of the data sets, and the class indices of tags."""

from __future__ import annotations

import difflib
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.io.listing import read_lines

MAX_CLASSES = IGNORE_INDEX - 1
"""Most classes an 8-bit index mask holds beside background (0) and void (255)."""

# fmt: off
VOC_CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)
"""The 20 classes of PASCAL VOC 2012 in the official order: class index c is mask value c + 1."""

COCO_CATEGORIES: dict[int, str] = {
    1: "person", 2: "bicycle", 3: "car", 4: "motorcycle", 5: "airplane", 6: "bus", 7: "train", 8: "truck", 9: "boat",
    10: "traffic light", 11: "fire hydrant", 13: "stop sign", 14: "parking meter", 15: "bench", 16: "bird", 17: "cat",
    18: "dog", 19: "horse", 20: "sheep", 21: "cow", 22: "elephant", 23: "bear", 24: "zebra", 25: "giraffe",
    27: "backpack", 28: "umbrella", 31: "handbag", 32: "tie", 33: "suitcase", 34: "frisbee", 35: "skis",
    36: "snowboard", 37: "sports ball", 38: "kite", 39: "baseball bat", 40: "baseball glove", 41: "skateboard",
    42: "surfboard", 43: "tennis racket", 44: "bottle", 46: "wine glass", 47: "cup", 48: "fork", 49: "knife",
    50: "spoon", 51: "bowl", 52: "banana", 53: "apple", 54: "sandwich", 55: "orange", 56: "broccoli", 57: "carrot",
    58: "hot dog", 59: "pizza", 60: "donut", 61: "cake", 62: "chair", 63: "couch", 64: "potted plant", 65: "bed",
    67: "dining table", 70: "toilet", 72: "tv", 73: "laptop", 74: "mouse", 75: "remote", 76: "keyboard",
    77: "cell phone", 78: "microwave", 79: "oven", 80: "toaster", 81: "sink", 82: "refrigerator", 84: "book",
    85: "clock", 86: "vase", 87: "scissors", 88: "teddy bear", 89: "hair drier", 90: "toothbrush",
}
"""The 80 categories of COCO "things": official category id to name. Ordered by id, number c is mask value c + 1."""
# fmt: on

COCO_CLASSES: tuple[str, ...] = tuple(COCO_CATEGORIES.values())
"""The 80 COCO class names in the order of their official ids."""


class ClassIndex:
    """Turns tag names into class indices; for an unknown name it proposes the nearest one.

    Args:
        names: the foreground classes; the position of a name is its class index.

    Example:
        >>> ClassIndex(["cat", "dog"]).lookup("dog", where="tags.csv, line 2")
        1
    """

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._index = {unicodedata.normalize("NFC", name): number for number, name in enumerate(self.names)}

    def lookup(self, tag: str, *, where: str) -> int:
        """Return the class index of a tag that was read at this file and line.

        Raises:
            DataError: the name is none of the classes; the nearest one is proposed.
        """
        number = self._index.get(unicodedata.normalize("NFC", tag))
        if number is not None:
            return number
        if (value := reserved_mask_value(tag)) is not None:
            raise DataError(f"{where}: {tag!r} is no class but mask value {value}; leave it out of the tags")
        near = difflib.get_close_matches(tag.casefold(), [name.casefold() for name in self.names], n=1, cutoff=0.5)
        known = next((name for name in self.names if near and name.casefold() == near[0]), None)
        hint = (
            f"did you mean {known!r}?"
            if known
            else f"the classes are {', '.join(self.names[:10])}" + (", ..." if len(self.names) > 10 else "")
        )
        raise DataError(f"{where}: unknown tag {tag!r}; {hint}")


_RESERVED = {"background": 0, "ignore": IGNORE_INDEX}
_CVAT_LINE = re.compile(r"#\s*label:.*|[^:]+:\d+,\d+,\d+:.*")  # of a labelmap.txt


def reserved_mask_value(name: str) -> int | None:
    """Mask value that annotation tools mean by a name that is no class; None for a class.

    `background` and labelme's `_background_` mean 0, labelme's `__ignore__` means void.

    Example:
        >>> reserved_mask_value("__ignore__"), reserved_mask_value("_background_"), reserved_mask_value("cat")
        (255, 0, None)
    """
    return _RESERVED.get(name.strip("_ ").casefold())


def check_mask_classes(num_classes: int) -> None:
    """Raise `ArgumentError` for more classes than an index mask holds, 254; maps have no such bound."""
    if num_classes > MAX_CLASSES:
        raise ArgumentError("num_classes", num_classes, f"give at most {MAX_CLASSES}: that many fit into an index mask")


def read_class_file(path: Path) -> tuple[str, ...]:
    """Read a class file (UTF-8): one foreground class name a line, in the order of the mask values 1, 2, ...

    Raises:
        DatasetNotFoundError: no such file.
        DataError: no class, a name twice, a name that is no class (`background`, `_background_`, `__ignore__`), or a
            label map of CVAT.
    """
    names = [line for _, line in read_lines(path, what="class_file")]
    if not names:
        raise DataError(f"{path}: no class name in it; write one foreground class name a line")
    twice = sorted({name for name in names if names.count(name) > 1})
    for name in names:
        if _CVAT_LINE.fullmatch(name):
            raise DataError(f"{path}: {name!r} is a line of CVAT's label map; write the class name alone, one a line")
        if (value := reserved_mask_value(name)) is not None:
            raise DataError(f"{path}: {name.lower()!r} is mask value {value} by itself; leave its line out")
    if twice:
        raise DataError(f"{path}: class {twice[0]!r} stands there more than once; keep one of the lines")
    return tuple(names)


def voc_palette(n: int = 256) -> npt.NDArray[np.uint8]:
    """RGB colours `(n, 3)` of the first `n` label values, as in the official VOC development kit.

    The bits of a label go in turn to red, green and blue, most significant bit of the colour first, so that 0 is
    black, 1 is (128, 0, 0) and 255, the void label, is (224, 224, 192).

    Example:
        >>> voc_palette()[15].tolist()  # person
        [192, 128, 128]
    """
    labels = np.arange(n)
    palette = np.zeros((n, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (labels >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette
