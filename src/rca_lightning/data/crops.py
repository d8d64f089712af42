"""Crops of cached features and masks, for training a head behind a frozen backbone."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import Dataset

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.dataset import TaggedImages, features_gone
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.records import Record
from rca_lightning.data.sample import Sample, SkippedImage, tag_row
from rca_lightning.errors import ArgumentError, DataError


class CachedCrops(Dataset["Sample"]):
    """Random crops of the features of photographs, which the cache has to hold, and of their masks.

    A crop has the same cells of the photograph in every level and in the mask, whose pixels are half a cell of the
    finest level. A photograph that is smaller lies at a random place in its crop, which is 0 and void around it. Half
    of the crops are mirrored: the features of the photograph, which are about those of its mirror image.

    Args:
        images: the photographs.
        cache: their features; the first scale is read.
        crop_cells: `C`, side of a crop in cells of the coarsest level.
        seed: of the crops.
        flip: whether to mirror half of them.

    Raises:
        ArgumentError: for less than one cell.
    """

    def __init__(
        self, images: TaggedImages, cache: FeatureCache, *, crop_cells: int, seed: int = 0, flip: bool = True
    ) -> None:
        if crop_cells < 1:
            raise ArgumentError("crop_cells", crop_cells, "give at least one cell")
        self.images = images
        self.cache = cache
        self.crop_cells = crop_cells
        self.seed = seed
        self.flip = flip

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, key: int | tuple[int, int]) -> Sample:
        """Read a crop of one photograph.

        Args:
            key: the index, or a pair (epoch, index). The crop depends on seed, epoch and index only.

        Returns:
            `features` of each level `(D_k, C * m_k, C * m_k)` float16, where `m_k` cells of the level lie along a cell
            of the coarsest; `mask` `(2 * C * m_0, 2 * C * m_0)` int64 if there is one; `tags` and `image_id`. A mask
            that cannot be read and is skipped is void everywhere.

        Raises:
            DatasetNotFoundError: features are gone from the cache.
            DataError: the mask cannot be used, or the levels do not lie on each other.
        """
        epoch, index = key if isinstance(key, tuple) else (0, key)
        record = self.images.records[index]
        levels = self.cache.open_view(record, self.cache.scales[0])
        if levels is None:
            raise features_gone(record, self.cache)
        height, width = levels[-1].shape[1:]
        factors = [_factor(level.shape[1:], (height, width), record) for level in levels]
        generator = np.random.default_rng((self.seed, epoch, index))
        corner = [
            int(generator.integers(min(0, side - self.crop_cells), max(0, side - self.crop_cells) + 1))
            for side in (height, width)
        ]
        mirrored = self.flip and bool(generator.random() < 0.5)
        features = [
            self._crop(level, corner, factor, mirrored=mirrored, fill=0)
            for level, factor in zip(levels, factors, strict=True)
        ]
        sample = Sample(
            tags=tag_row(record.tags, self.images.num_classes),
            image_id=record.image_id,
            features=[torch.from_numpy(level) for level in features],
        )
        mask, factor = self.images.mask(index), 2 * factors[0]
        if isinstance(mask, SkippedImage):
            sample["unread"] = [mask]
            mask = np.full((1, 1), IGNORE_INDEX, dtype=np.uint8)
        if mask is not None:
            mask = _resize_nearest(mask, (factor * height, factor * width))
            mask = self._crop(mask, corner, factor, mirrored=mirrored, fill=IGNORE_INDEX)
            sample["mask"] = torch.from_numpy(mask.astype(np.int64))
        return sample

    def _crop(
        self, grid: npt.NDArray[Any], corner: list[int], factor: int, *, mirrored: bool, fill: int
    ) -> npt.NDArray[Any]:
        """Crop of a grid `(..., h, w)` that has `factor` cells along one of the coarsest level."""
        size = factor * self.crop_cells
        crop = np.full((*grid.shape[:-2], size, size), fill, dtype=grid.dtype)
        starts = [factor * start for start in corner]
        ends = [min(start + size, side) for start, side in zip(starts, grid.shape[-2:], strict=True)]
        rows, columns = (slice(max(start, 0), end) for start, end in zip(starts, ends, strict=True))
        to_rows, to_columns = (slice(max(-start, 0), end - start) for start, end in zip(starts, ends, strict=True))
        crop[..., to_rows, to_columns] = grid[..., rows, columns]
        return np.ascontiguousarray(crop[..., ::-1]) if mirrored else crop


def _factor(shape: tuple[int, ...], coarsest: tuple[int, int], record: Record) -> int:
    """How many cells of a level lie along one of the coarsest."""
    factor = shape[0] // coarsest[0]
    if shape != (factor * coarsest[0], factor * coarsest[1]):
        raise DataError(
            f"features of {record.image_id}: a grid of {shape[0]} x {shape[1]} cells does not divide the coarsest one, "
            f"{coarsest[0]} x {coarsest[1]}; take a backbone whose strides divide its output stride"
        )
    return factor


def _resize_nearest(mask: npt.NDArray[np.uint8], size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """The pixels of a mask under the centres of the cells of a grid that covers it."""
    rows, columns = (
        (2 * np.arange(cells) + 1) * side // (2 * cells) for cells, side in zip(size, mask.shape, strict=True)
    )
    return mask[np.ix_(rows, columns)]
