"""Run-length encoded masks of COCO, decoded with every length checked.

pycocotools returns uninitialised memory for runs that end too early, so they are decoded here.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.errors import DataError

_MAX_SHIFT = 60


def decode_rle(rle: dict[str, Any], *, height: int, width: int, where: str) -> npt.NDArray[np.bool_]:
    """Decode one region.

    Args:
        rle: `{"size": [height, width], "counts": ...}` with the counts as a list of run lengths,
            alternately outside and inside and down the columns, or as COCO's compressed string.
        height: height of the image.
        width: width of the image.
        where: file and annotation, for the error.

    Returns:
        The region, (H, W) bool.

    Raises:
        DataError: the size is not the image's, or the runs do not add up to it.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, (list, tuple)) or list(size) != [height, width]:
        raise DataError(f"{where}: region of size {size} in an image of size {[height, width]}; correct the annotation")
    try:
        runs = np.array(_uncompress(counts) if isinstance(counts, str) else counts, dtype=np.int64).reshape(-1)
    except (TypeError, ValueError, OverflowError, IndexError) as error:
        raise DataError(f"{where}: run lengths cannot be read ({error}); correct the annotation") from error
    if runs.size == 0 or runs.min() < 0 or runs.max() > height * width or runs.sum() != height * width:
        raise DataError(
            f"{where}: run lengths do not add up to the {height * width} pixels of the image; correct the annotation"
        )
    flat = np.repeat(np.arange(runs.size) % 2 == 1, runs)
    region: npt.NDArray[np.bool_] = flat.reshape(width, height).T  # runs go down the columns
    return region


def _uncompress(text: str) -> list[int]:
    # Groups of 5 bits, low ones first, 48 added; bit 6 says that more follow, the last group's bit 5 is the sign.
    # From the third run on a number is the difference to the run two before it.
    runs: list[int] = []
    position = 0
    while position < len(text):
        value, shift, more = 0, 0, True
        while more:
            group = ord(text[position]) - 48
            if not 0 <= group < 64 or shift > _MAX_SHIFT:  # a number of a million digits would take hours
                raise ValueError("no compressed run lengths")
            value |= (group & 0x1F) << shift
            shift += 5
            more = bool(group & 0x20)
            position += 1
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
    return runs
