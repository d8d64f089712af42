"""The records of a split as a PyTorch data set."""

from __future__ import annotations

import copy
from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch.utils.data import Dataset

from rca_lightning.data.decode import image_size
from rca_lightning.data.reader import Reader
from rca_lightning.data.record_table import RecordTable
from rca_lightning.data.records import Record
from rca_lightning.data.sample import Batch, Sample, collate
from rca_lightning.data.transforms import Pixels, TrainAugmentation, normalise


class TaggedImages(Dataset[Sample]):
    """Images with tags, read when they are asked for.

    Args:
        records: the images; kept as a `RecordTable`.
        num_classes: L, the length of the tag vector.
        augmentation: what to do with an image in training; None gives it in its own size.
        seed: seed of the augmentation.
        reduced_decoding: whether to decode photographs smaller where the augmentation makes them smaller anyway.
        cache_mib: room for decoded photographs and masks in each process that reads them, in MiB.
    """

    def __init__(
        self,
        records: Sequence[Record],
        *,
        num_classes: int,
        augmentation: TrainAugmentation | None = None,
        seed: int = 0,
        reduced_decoding: bool = False,
        cache_mib: float = 0,
    ) -> None:
        self.records = RecordTable.of(records)
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.seed = seed
        self._reader = Reader(num_classes, reduced_decoding=reduced_decoding, cache_mib=cache_mib)

    def __len__(self) -> int:
        return len(self.records)

    def without(self, image_ids: Collection[str], *, at_least: int) -> TaggedImages:
        """The same images but for those named; some of these stay if fewer than `at_least` were left."""
        named = np.array([image_id in image_ids for image_id in self.records.image_ids], dtype=np.bool_)
        kept, others = np.flatnonzero(~named), np.flatnonzero(named)
        rows = np.concatenate([kept, others[: max(0, at_least - len(kept))]])
        fewer = copy.copy(self)
        fewer.records = self.records.take(rows)
        return fewer

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read one image.

        Args:
            key: the index, or a pair (epoch, index). The augmentation depends on seed, epoch and
                index only: not on the order, the number of loader processes, or what was drawn before.

        Returns:
            The sample.

        Raises:
            DatasetNotFoundError: a file is gone.
            DataError: a file is damaged, or the mask does not fit the image or the classes.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index]
        size, image = self._reader.photograph(record)
        saliency = self._reader.saliency(record, size=size)
        mask = self._reader.mask(record, size=size)
        if self.augmentation is None:
            pixels = Pixels(image(size), mask, saliency)
        else:
            seed = (self.seed, epoch, index)
            pixels = self.augmentation.decoded(image, size, mask=mask, saliency=saliency, seed=seed)
        original_size = torch.tensor(size, dtype=torch.int64)
        tags = torch.zeros(self.num_classes)
        tags[list(record.tags or ())] = 1.0
        sample = Sample(image=normalise(pixels), tags=tags, image_id=record.image_id, original_size=original_size)
        if pixels.mask is not None:
            sample["mask"] = torch.from_numpy(pixels.mask.astype(np.int64))
        if pixels.saliency is not None:
            sample["saliency"] = torch.from_numpy(pixels.saliency)
        if pixels.window is not None:
            sample["window"] = torch.from_numpy(pixels.window[:2].astype(np.float32))
        return sample


class BatchedImages(Dataset[Batch]):
    """Batches of images that are alike, for a sampler that yields lists of indices.

    Args:
        images: the images, without an augmentation.
    """

    def __init__(self, images: TaggedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Batch:
        """Read the images of one batch; see `TaggedImages`."""
        return collate([self.images[index] for index in indices])

    def keys(self) -> list[tuple[object, ...]]:
        """What images of one batch must share: height and width, and whether there is a mask and a saliency map.

        Raises:
            DataError: a file is not an image.
        """
        return [
            (*image_size(record.image), record.mask is None, record.saliency is None) for record in self.images.records
        ]
