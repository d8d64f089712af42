"""Draws masks from the annotated objects of COCO: polygons and run-length codes."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
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


_NOTHING = [0.0] * 6  # a polygon without area
_LONGEST = 100_000  # pixels that an outline may have in the smallest image


@dataclass(frozen=True)
class CocoShapes:
    """Annotated objects of one image as one string of bytes, for workers copy the pages of Python lists they read.

    Attributes:
        height: height of the image.
        width: width of the image.
        where: file and image, for errors.
        packed: JSON of pairs (mask value, COCO segmentation).
    """

    height: int
    width: int
    where: str
    packed: bytes

    @classmethod
    def pack(cls, objects: Iterable[tuple[int, Any]], *, height: int, width: int, where: str) -> CocoShapes:
        """Pack pairs of mask value and segmentation (list of polygons, or RLE)."""
        packed = json.dumps(list(objects), separators=(",", ":")).encode()
        return cls(height=height, width=width, where=where, packed=packed)

    def draw(self) -> npt.NDArray[np.uint8]:
        """Draw the semantic mask: larger objects first, so smaller ones lie over them; crowds are drawn too.

        Returns:
            The mask, (H, W) uint8: 0 where no object is, else the mask value of the class.

        Raises:
            DataError: a segmentation that is neither polygons nor a run-length code of this image.
        """
        from pycocotools import mask as coco_mask

        try:
            objects = json.loads(self.packed)
        except RecursionError as error:
            raise DataError(f"{self.where}: a segmentation of lists within lists within lists; correct it") from error
        # Kept encoded, for of the objects of a crowded image whole masks would fill the memory.
        codes = [(value, self._code(segmentation)) for value, segmentation in objects]
        codes.sort(key=lambda item: -int(coco_mask.area(item[1])))
        mask = np.zeros((self.height, self.width), dtype=np.uint8)
        for value, code in codes:
            mask[coco_mask.decode(code).astype(np.bool_)] = value
        return mask

    def _code(self, segmentation: Any) -> Any:
        """The region of an object in the run-length code of pycocotools."""
        from pycocotools import mask as coco_mask

        if isinstance(segmentation, dict):
            region = decode_rle(segmentation, height=self.height, width=self.width, where=self.where)
            return coco_mask.encode(np.asfortranarray(region, dtype=np.uint8))
        if isinstance(segmentation, list):
            polygons = [self._checked(polygon) for polygon in segmentation]
            polygons = [
                polygon for polygon in polygons if len(polygon) >= 6
            ]  # fewer than three corners enclose nothing
            return coco_mask.merge(coco_mask.frPyObjects(polygons or [_NOTHING], self.height, self.width))
        raise DataError(
            f"{self.where}: a segmentation of type {type(segmentation).__name__}; polygons or a run-length code belong "
            "there"
        )

    def _checked(self, polygon: Any) -> list[float]:
        try:
            corners = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError, OverflowError) as error:
            raise DataError(f"{self.where}: a polygon is no list of numbers ({error}); correct it") from error
        # pycocotools allocates as many steps as an edge is long: a corner at 1e9 would take all memory.
        limit = 4 * max(self.height, self.width)
        if corners.ndim != 1 or corners.size % 2 or not np.all(np.abs(corners) <= limit):
            raise DataError(
                f"{self.where}: a polygon has half a corner or one far outside the image of "
                f"{self.width} x {self.height} pixels; correct it"
            )
        # The same for an outline of many edges from one end to the other.
        lengths = np.abs(np.diff(corners.reshape(-1, 2), axis=0)).max(axis=1, initial=0)  # (corners - 1,)
        if lengths.sum() > _LONGEST + 4 * self.height * self.width:
            raise DataError(f"{self.where}: the outline of a polygon is longer than the image has pixels; correct it")
        return [float(number) for number in corners]
