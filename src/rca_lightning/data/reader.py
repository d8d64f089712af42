"""Decoding what belongs to a record, with the sizes checked."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rca_lightning.data.decode import image_size, read_image, read_saliency
from rca_lightning.data.decoded_cache import DecodedCache
from rca_lightning.data.masks import check_same_size, read_mask
from rca_lightning.data.records import Record
from rca_lightning.data.resizing import reduction
from rca_lightning.data.transforms import Decoder


class Reader:
    """Reads photographs, masks and saliency maps.

    Args:
        num_classes: L, for the check of masks.
        reduced_decoding: whether a photograph may be decoded smaller where it is not needed larger.
        cache_mib: room for decoded photographs and masks in each process, in MiB.
    """

    def __init__(self, num_classes: int, *, reduced_decoding: bool = False, cache_mib: float = 0) -> None:
        self.num_classes = num_classes
        self.reduced_decoding = reduced_decoding
        self._cache = DecodedCache(cache_mib)

    def photograph(self, record: Record) -> tuple[tuple[int, int], Decoder]:
        """Return height and width of the upright photograph, and what decodes it."""
        if not self.reduced_decoding:
            image = self._decoded(record, 1)
            return (image.shape[0], image.shape[1]), lambda _: image
        size = self._cache.get(("size", record.image_id), lambda: image_size(record.image))
        decoded: dict[int, npt.NDArray[np.uint8]] = {}  # a crop that is drawn anew does not decode anew

        def decode(at_least: tuple[int, int]) -> npt.NDArray[np.uint8]:
            by = reduction(size, at_least)
            if by not in decoded:
                decoded[by] = self._decoded(record, by)
            return decoded[by]

        return size, decode

    def mask(self, record: Record, *, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
        """Return the mask of a photograph of this size, (H, W)."""
        if record.mask is None:
            return None
        return self._cache.get(("mask", record.image_id), lambda: self._mask(record, size))

    def saliency(self, record: Record, *, size: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        """Return the saliency map of a photograph of this size, (H, W)."""
        if record.saliency is None:
            return None
        saliency = read_saliency(record.saliency)
        name = f"the saliency map {record.saliency}"
        check_same_size(size, saliency.shape, image_path=record.image, other_name=name)
        return saliency

    def _decoded(self, record: Record, by: int) -> npt.NDArray[np.uint8]:
        return self._cache.get((by, record.image_id), lambda: read_image(record.image, reduction=by))

    def _mask(self, record: Record, size: tuple[int, int]) -> npt.NDArray[np.uint8] | None:
        source = record.mask
        if source is None:
            return None
        if isinstance(source, Path):
            mask = read_mask(source, num_classes=self.num_classes)
            check_same_size(size, mask.shape, image_path=record.image, other_name=f"the mask {source}")
            return mask
        name = f"the annotation in {source.where}"
        check_same_size(size, (source.height, source.width), image_path=record.image, other_name=name)
        return source.draw()
