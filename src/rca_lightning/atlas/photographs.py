"""The photographs behind the memory, found by the image ids it keeps."""

from __future__ import annotations

import logging
from dataclasses import replace

import torch

from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.listing import first_few
from rca_lightning.data.sample import Sample
from rca_lightning.errors import DataError
from rca_lightning.memory.bank import RegionMemory
from rca_lightning.memory.provenance import decode_id, encode_ids

logger = logging.getLogger(__name__)


class Photographs:
    """Whole images by the id that the memory keeps, without augmentation.

    Args:
        images: the images, with or without an augmentation; with one, `long_side` is what it makes of them.
    """

    def __init__(self, images: TaggedImages) -> None:
        # Neither masks nor saliency are looked at: not read, they cannot be wrong either.
        records = [replace(record, mask=None, saliency=None) for record in images.records]
        self._images = TaggedImages(records, num_classes=images.num_classes)
        # The memory shortens long ids; both sides of the comparison have to.
        encoded = encode_ids([record.image_id for record in records])
        self._places = {decode_id(row): place for place, row in enumerate(encoded)}
        self.long_side: int | None = None
        if images.augmentation is not None:
            low, high = images.augmentation.scale
            self.long_side = round(images.augmentation.crop_size * (low + high) / 2)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def read(self, image_id: str) -> Sample:
        """The sample of an image.

        Raises:
            DatasetNotFoundError: its file is gone.
            DataError: its file is damaged.
        """
        return self._images.read(self._places[image_id])

    def check(self, memory: RegionMemory) -> int:
        """Log how many images of a memory are not here.

        Returns:
            Their number.

        Raises:
            DataError: if none of them is here.
        """
        slots = torch.nonzero(memory.valid).tolist()
        remembered = {memory.image_id(label, slot) for label, slot in slots}
        missing = sorted(remembered - self._places.keys())
        if missing and len(missing) == len(remembered):
            raise DataError(
                f"none of the {len(missing)} images in the region memory is among the {len(self._images)} of the data "
                f"({first_few(missing)}); give the data and the train_split that the checkpoint was trained on"
            )
        if missing:
            logger.warning(
                "prototype atlas: %d of %d images in the region memory are no longer in the data and are left out: %s",
                len(missing),
                len(remembered),
                first_few(missing),
            )
        return len(missing)
