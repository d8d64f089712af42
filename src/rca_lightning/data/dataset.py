"""PyTorch data sets that read the images of a split."""

from __future__ import annotations

import copy
from collections.abc import Collection, Container, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.images import DecodedCache, check_same_size, image_size, read_image, read_mask, read_saliency
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.data.sample import Batch, Sample, SkippedImage, collate_read, tag_row
from rca_lightning.data.transforms import Decoder, Pixels, TrainAugmentation, normalise, reduction
from rca_lightning.errors import DataError, DatasetNotFoundError


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
        source = record.mask
        if source is None:
            return None
        return self._cache.get(("mask", record.image_id), lambda: self._mask(record.image, source, size))

    def saliency(self, record: Record, *, size: tuple[int, int]) -> npt.NDArray[np.float32] | None:
        """Return the saliency map of a photograph of this size, (H, W)."""
        if record.saliency is None:
            return None
        saliency = read_saliency(record.saliency)
        check_same_size(size, saliency.shape, image_path=record.image, other_name=f"the saliency map {record.saliency}")
        return saliency

    def _decoded(self, record: Record, by: int) -> npt.NDArray[np.uint8]:
        return self._cache.get((by, record.image_id), lambda: read_image(record.image, reduction=by))

    def _mask(self, image: Path, source: Path | CocoShapes, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
        if isinstance(source, Path):
            mask = read_mask(source, num_classes=self.num_classes)
            check_same_size(size, mask.shape, image_path=image, other_name=f"the mask {source}")
            return mask
        name = f"the annotation in {source.where}"
        check_same_size(size, (source.height, source.width), image_path=image, other_name=name)
        return source.draw()


def load_mask(record: Record, *, num_classes: int) -> npt.NDArray[np.uint8] | None:
    """Read the mask file of an image, or draw its annotated objects, (H, W); None without a mask."""
    if isinstance(record.mask, Path):
        return read_mask(record.mask, num_classes=num_classes)
    return None if record.mask is None else np.ascontiguousarray(record.mask.draw())


_UNREADABLE = (DataError, DatasetNotFoundError)


class TaggedImages(Dataset["Sample | SkippedImage"]):
    """Images with tags, read when they are asked for.

    With `skip_of`, an image that cannot be read is skipped: in training the next readable one, in the order of the
    records, takes its place, so batches keep their number and size and are the same in every process, epoch and
    resumed run; without an augmentation a `SkippedImage` does.

    Args:
        records: the images; kept as a `RecordTable`.
        num_classes: L, the length of the tag vector.
        augmentation: what to do with an image in training; None gives it in its own size.
        seed: seed of the augmentation.
        reduced_decoding: whether to decode photographs smaller where the augmentation makes them smaller anyway.
        cache_mib: room for decoded photographs and masks in each process that reads them, in MiB.
        skip_of: name of the split if images that cannot be read are skipped; None: they are an error.
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
        skip_of: str | None = None,
    ) -> None:
        self.records = RecordTable.of(records)
        self.num_classes = num_classes
        self.augmentation = augmentation
        self.seed = seed
        self.skip_of = skip_of
        self.features: FeatureCache | None = None  # whose features are added to samples
        self.scored = False  # by features of all views, or trained on
        self._reader = Reader(num_classes, reduced_decoding=reduced_decoding, cache_mib=cache_mib)

    def __len__(self) -> int:
        return len(self.records)

    def without(self, image_ids: Container[str], *, at_least: int) -> TaggedImages:
        """The same images but for those named; some of these stay if fewer than `at_least` were left."""
        is_named = (image_id in image_ids for image_id in self.records.iterate_ids())
        named = np.fromiter(is_named, dtype=np.bool_, count=len(self.records))
        kept, others = np.flatnonzero(~named), np.flatnonzero(named)
        rows = np.concatenate([kept, others[: max(0, at_least - len(kept))]])
        fewer = copy.copy(self)
        fewer.records = self.records.take(rows)
        return fewer

    def whole(self) -> TaggedImages:
        """The same photographs in their own size, without masks and saliency maps."""
        photographs = copy.copy(self)
        photographs.augmentation = None
        photographs._reader = Reader(self.num_classes)
        if self.records.has_mask.any() or self.records.has_saliency.any():
            photographs.records = RecordTable.of(
                Record(record.image_id, record.image, record.tags) for record in self.records
            )
        return photographs

    def mask(self, row: int) -> npt.NDArray[np.uint8] | SkippedImage | None:
        """Read the mask (H, W) of a photograph, which is not decoded.

        Returns:
            The mask; None without one; with `skip_of`, a `SkippedImage` for one that cannot be read.

        Raises:
            DatasetNotFoundError: a file is gone.
            DataError: the mask is damaged, or does not fit the photograph or the classes.
        """
        record = self.records[row]
        if record.mask is None:
            return None
        try:
            return self._reader.mask(record, size=image_size(record.image))
        except _UNREADABLE as error:
            if self.skip_of is None:
                raise
            return SkippedImage(self.skip_of, record.image_id, " ".join(str(error).split()))

    def unread(self, image_ids: Collection[str]) -> list[SkippedImage]:
        """Those of the named images that cannot be read; empty without `skip_of`, for then they are an error."""
        if self.skip_of is None:
            return []
        rows = [row for row, image_id in enumerate(self.records.iterate_ids()) if image_id in image_ids]
        return [image for row in rows if isinstance(image := self[row], SkippedImage)]

    def __getitem__(self, key: int | tuple[int, int]) -> Sample | SkippedImage:
        """Read one image as `read` does; with `skip_of`, of an unreadable one give another or `SkippedImage`.

        Raises:
            DatasetNotFoundError: a file is gone.
            DataError: a file cannot be used; with `skip_of` only if none of the images can.
        """
        if self.skip_of is None:
            return self.read(key)
        index = key[1] if isinstance(key, tuple) else key
        unread: list[SkippedImage] = []
        for place in range(index, index + (1 if self.augmentation is None else len(self))):
            record = self.records[place % len(self)]
            try:
                sample = self.read(key, record)
            except _UNREADABLE as error:
                unread.append(SkippedImage(self.skip_of, record.image_id, " ".join(str(error).split())))
                continue
            if unread:
                sample["unread"] = unread
            return sample
        if self.augmentation is None:
            return unread[0]
        raise DataError(f"split {self.skip_of!r}: none of its {len(self)} images can be read: {unread[0].reason}")

    def read(self, key: int | tuple[int, int], record: Record | None = None) -> Sample:
        """Read one image.

        Args:
            key: the index, or a pair (epoch, index). The augmentation depends on seed, epoch and
                index only: not on the order, the number of loader processes, or what was drawn before.
            record: another image to read in the place of that one.

        Raises:
            DatasetNotFoundError: a file is gone.
            DataError: a file is damaged, or the mask does not fit the image or the classes.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.records[index] if record is None else record
        seed = (self.seed, epoch, index)
        size, image = self._reader.photograph(record)
        saliency = self._reader.saliency(record, size=size)
        mask = self._reader.mask(record, size=size)
        if self.augmentation is None:
            pixels = Pixels(image(size), mask, saliency)
        else:
            pixels = self.augmentation.decoded(image, size, mask=mask, saliency=saliency, seed=seed)
        sample = Sample(
            image=normalise(pixels),
            tags=tag_row(record.tags, self.num_classes),
            image_id=record.image_id,
            original_size=torch.tensor(size),
        )
        if self.features is not None and (features := _read(self.features, record, scored=self.scored)) is not None:
            sample["features"] = features
        if pixels.mask is not None:
            sample["mask"] = torch.from_numpy(pixels.mask.astype(np.int64))
        if pixels.saliency is not None:
            sample["saliency"] = torch.from_numpy(pixels.saliency)
        if pixels.window is not None:
            sample["window"] = torch.from_numpy(pixels.window[:2].astype(np.float32))
        return sample


class CachedFeatures(Dataset["Sample"]):
    """Photographs of a split in the form of their features, which the cache has to hold.

    Args:
        images: the photographs.
        cache: their features.
        with_masks: whether their masks come with them; one that cannot be read and is skipped is void everywhere.
    """

    def __init__(self, images: TaggedImages, cache: FeatureCache, *, with_masks: bool = False) -> None:
        self.images = images
        self.cache = cache
        self.with_masks = with_masks

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read the features of one photograph.

        Args:
            key: the index, or a pair (epoch, index). -1: a sample without features, which `EpochSampler` gives a
                process that has no further photograph.

        Raises:
            DatasetNotFoundError: they are gone from the cache.
        """
        row = key[1] if isinstance(key, tuple) else key
        if row < 0:
            return Sample(tags=torch.zeros(self.images.num_classes), image_id="", features=[])
        record = self.images.records[row]
        features = _read(self.cache, record)
        if features is None:
            raise features_gone(record, self.cache)
        sample = Sample(tags=tag_row(record.tags, self.images.num_classes), image_id=record.image_id, features=features)
        mask = self.images.mask(row) if self.with_masks else None
        if isinstance(mask, SkippedImage):
            sample["unread"] = [mask]
            mask = np.full((1, 1), IGNORE_INDEX, dtype=np.uint8)
        if mask is not None:
            sample["mask"] = torch.from_numpy(mask.astype(np.int64))
        return sample


def _read(cache: FeatureCache, record: Record, *, scored: bool = False) -> list[Any] | None:
    """Features of a photograph as samples have them: of each scale one map, or the list of its levels."""
    return cache.read(record, scored=scored) if cache.levels == 1 else cache.read_levels(record, scored=scored)


def features_gone(record: Record, cache: FeatureCache) -> DatasetNotFoundError:
    """Error of features that the cache had, and has no more."""
    where = f"features of {record.image_id} are gone from {cache.folder}"
    return DatasetNotFoundError(f"{where}; run again to have them computed anew")


class BatchedImages(Dataset["Batch"]):
    """Batches of images, for a sampler that yields lists of indices."""

    def __init__(self, images: TaggedImages) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, indices: list[int]) -> Batch:
        """Read the images of one batch; see `TaggedImages`."""
        return collate_read([self.images[index] for index in indices], num_classes=self.images.num_classes)

    def keys(self) -> list[tuple[object, ...]]:
        """What images of one batch must share: height and width, and whether there is a mask and a saliency map."""

        def size(record: Record) -> tuple[int, int]:
            try:
                return image_size(record.image)
            except _UNREADABLE:
                if self.images.skip_of is None:
                    raise
                return (0, 0)

        records = self.images.records
        return [(size(record), record.mask is None, record.saliency is None) for record in records]
