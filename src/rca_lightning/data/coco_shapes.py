"""The annotated objects of one COCO image, and the semantic mask they draw."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.data.coco_rle import decode_rle
from rca_lightning.errors import DataError


@dataclass(frozen=True)
class CocoShapes:
    """Objects of one image, packed as one string of bytes.

    Packed, the objects of 118,000 images stay a few hundred megabytes that loader processes share;
    as Python lists every process would end up with a copy of its own.

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
        regions = [(value, self._region(segmentation)) for value, segmentation in json.loads(self.packed)]
        regions.sort(key=lambda item: -int(np.count_nonzero(item[1])))
        mask = np.zeros((self.height, self.width), dtype=np.uint8)
        for value, region in regions:
            mask[region] = value
        return mask

    def _region(self, segmentation: Any) -> npt.NDArray[np.bool_]:
        if isinstance(segmentation, dict):
            return decode_rle(segmentation, height=self.height, width=self.width, where=self.where)
        if isinstance(segmentation, list):
            return self._fill(segmentation)
        raise DataError(
            f"{self.where}: a segmentation of type {type(segmentation).__name__}; polygons or a run-length code belong "
            "there"
        )

    def _fill(self, polygons: list[Any]) -> npt.NDArray[np.bool_]:
        from pycocotools import mask as coco_mask

        drawn = [self._checked(polygon) for polygon in polygons]
        drawn = [polygon for polygon in drawn if len(polygon) >= 6]  # fewer than three corners enclose nothing
        if not drawn:
            return np.zeros((self.height, self.width), dtype=np.bool_)
        codes = coco_mask.frPyObjects(drawn, self.height, self.width)
        return np.asarray(coco_mask.decode(coco_mask.merge(codes)), dtype=np.bool_)

    def _checked(self, polygon: Any) -> list[float]:
        try:
            corners = np.array(polygon, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise DataError(f"{self.where}: a polygon is no list of numbers ({error}); correct it") from error
        # pycocotools allocates as many steps as an edge is long: a corner at 1e9 would take all memory.
        limit = 4 * max(self.height, self.width)
        if corners.ndim != 1 or corners.size % 2 or not np.all(np.abs(corners) <= limit):
            raise DataError(
                f"{self.where}: a polygon has half a corner or one far outside the image of "
                f"{self.width} x {self.height} pixels; correct it"
            )
        return [float(number) for number in corners]
