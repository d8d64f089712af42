"""Square crops of remembered regions: the photograph around each region, with its outline."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from rca_lightning.atlas.nearest import PrototypeRow
from rca_lightning.atlas.outlines import ImageRegions, Mask
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.data.sample import Sample
from rca_lightning.data.visualization import Pixels, denormalise
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.listing import first_few
from rca_lightning.io.progress import show_progress
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.training_guards import evaluation_mode
from rca_lightning.rca.memory_bank import RegionMemory, decode_id, encode_ids

logger = logging.getLogger(__name__)


class Photographs:
    """Whole images by the id that the memory keeps, without augmentation.

    Args:
        images: the images; with an augmentation, `long_side` is the mean long side that it scales them to.
        scale: of the photographs that regions were cut from, without an augmentation.
        max_side: longest side in pixels at which the network sees one, without an augmentation.
        cache: their features.
    """

    def __init__(
        self,
        images: TaggedImages,
        *,
        scale: float = 1.0,
        max_side: int | None = None,
        cache: FeatureCache | None = None,
    ) -> None:
        # Masks and saliency are not needed, so a damaged one is no error.
        records = [replace(record, mask=None, saliency=None) for record in images.records]
        self._images = TaggedImages(records, num_classes=images.num_classes)
        # The memory shortens long ids, so these are shortened too.
        encoded = encode_ids([record.image_id for record in records])
        self._places = {decode_id(row): place for place, row in enumerate(encoded)}
        self.long_side: int | None = None
        self.scale = scale
        self._max_side = max_side
        self._cache = cache
        if images.augmentation is not None:
            low, high = images.augmentation.scale
            self.long_side = round(images.augmentation.crop_size * (low + high) / 2)

    def side_of(self, image: Tensor) -> int:
        """Long side in pixels at which the network sees a photograph `(3, H, W)`."""
        if self.long_side is not None:
            return self.long_side
        side = max(1, round(max(image.shape[1:]) * self.scale))
        return side if self._max_side is None else min(side, self._max_side)

    def __contains__(self, image_id: object) -> bool:
        return image_id in self._places

    def read(self, image_id: str) -> Sample:
        """Reads an image; raises `DatasetNotFoundError` or `DataError` if its file is gone or damaged."""
        return self._images.read(self._places[image_id])

    def features(self, image_id: str) -> Tensor | None:
        """Features `(1, D, h, w)` of an image in the cache; `None` where it holds none."""
        kept = None if self._cache is None else self._cache.read(self._images.records[self._places[image_id]])
        return None if kept is None else kept[0][:1]

    def check(self, memory: RegionMemory) -> int:
        """Counts and logs the images of a memory that are not here; raises `DataError` if none of them is."""
        remembered = {memory.image_id(label, slot) for label, slot in torch.nonzero(memory.valid).tolist()}
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


TILE = 144
"""Side of a crop in pixels."""

_LINE = (255, 221, 0)
_HALO = (0, 0, 0)
_SHADE = 0.7  # brightness outside the region: which side of the line is meant
_EMPTY = 238  # grey of what is no photograph
_SUPERSAMPLING = 2  # factor, for smooth lines


def crop_box(mask: Mask, *, margin: float = 0.15, least: int = 48) -> tuple[int, int, int, int]:
    """Finds a box around the region of a mask, square where the photograph is large enough.

    Args:
        mask: `(H, W)` with at least one pixel.
        margin: added on every side, as a share of the longer side of the region.
        least: shortest side of the box in pixels.

    Returns:
        top, left, bottom, right in pixels, bottom and right exclusive, inside the photograph.

    Example:
        >>> mask = np.zeros((100, 200), dtype=bool)
        >>> mask[40:60, 90:110] = True
        >>> crop_box(mask)
        (26, 76, 74, 124)
    """
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longer = max(bottom - top, right - left)
    side = max(longer + 2 * round(longer * margin), least)
    top, bottom = _span(top, bottom, side, mask.shape[0])
    left, right = _span(left, right, side, mask.shape[1])
    return top, left, bottom, right


def _span(first: int, last: int, side: int, extent: int) -> tuple[int, int]:
    """`side` pixels around `first:last`, moved inside `0:extent` and cut to it."""
    side = min(side, extent)
    start = min(max((first + last - side) // 2, 0), extent - side)
    return start, start + side


def draw_crop(image: Pixels, mask: Mask | None, side: int) -> Pixels:
    """Draws a region with darkened surroundings and a yellow outline between black lines.

    Args:
        image: `(H, W, 3)`, the whole photograph.
        mask: `(H, W)`, the region; `None`: the whole photograph without an outline.
        side: pixels of the picture.

    Returns:
        `(side, side, 3)`; grey beside a photograph that is no square.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = (0, 0, height, width) if mask is None else crop_box(mask)
    fine = side * _SUPERSAMPLING
    scale = fine / max(bottom - top, right - left)
    target = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    cropped = Image.fromarray(image[top:bottom, left:right]).resize(target, Image.Resampling.BICUBIC)
    pixels = np.array(cropped)
    if mask is not None:
        grey = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
        grey = grey.resize(target, Image.Resampling.BILINEAR)
        if scale > 1:  # without the steps of single pixels
            grey = grey.filter(ImageFilter.GaussianBlur(scale / 2))
        inside = np.asarray(grey) > 127
        pixels[~inside] = pixels[~inside] * _SHADE
        _draw_outline(pixels, inside)
    canvas = Image.new("RGB", (fine, fine), (_EMPTY, _EMPTY, _EMPTY))
    canvas.paste(Image.fromarray(pixels), ((fine - target[0]) // 2, (fine - target[1]) // 2))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def _draw_outline(pixels: npt.NDArray[np.uint8], inside: Mask) -> None:
    """A bright line along the inner border between two dark ones, visible on any background."""
    outer = _dilate(inside, 2)
    # Beyond the photograph is outside: a region that reaches its edge is closed there.
    line = ~_dilate(~inside, 4, beyond=True)
    inner = ~_dilate(~line, 2, beyond=True)
    pixels[outer & ~inner] = _HALO
    pixels[inside & ~line] = _LINE


def _dilate(mask: Mask, steps: int, *, beyond: bool = False) -> Mask:
    for _ in range(steps):
        padded = np.pad(mask, 1, constant_values=beyond)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


Slot = tuple[int, int]
"""Class and slot of a region in the memory."""

Crops = dict[Slot, Pixels]
"""A square picture of each region whose photograph can be read."""


def draw_crops(
    module: RCAModule,
    memory: RegionMemory,
    photographs: Photographs,
    rows: Sequence[PrototypeRow],
    *,
    progress_bar: bool,
    each: Callable[[int, int], None] | None = None,
) -> Crops:
    """Draws the nearest regions of all rows, whose images are among `photographs`.

    A photograph that is gone or damaged is logged and has no crop.
    """
    wanted: dict[str, list[Slot]] = defaultdict(list)
    for row in rows:
        for region in row.nearest:
            wanted[region.image_id].append((row.label, region.slot))
    crops: Crops = {}
    with evaluation_mode(module):
        shown = show_progress(wanted, what="prototype atlas", total=len(wanted), bar=progress_bar)
        for done, image_id in enumerate(shown, start=1):
            crops |= _draw(module, memory, photographs, image_id, wanted[image_id])
            if each is not None:
                each(done, len(wanted))
    return crops


def _draw(
    module: RCAModule, memory: RegionMemory, photographs: Photographs, image_id: str, slots: Sequence[Slot]
) -> Crops:
    try:
        sample = photographs.read(image_id)
    except (DataError, DatasetNotFoundError) as error:
        logger.warning("prototype atlas: %s", error)
        return {}
    outlines = ImageRegions(
        module.network,
        sample["image"],
        sample["tags"],
        long_side=photographs.side_of(sample["image"]),
        region_threshold=module.threshold_of_regions("region_threshold"),
        region_rule=module.hparams["region_rule"],
        region_map=module.hparams["region_map"],
        background_threshold=module.threshold_of_regions("background_threshold"),
        propagation_steps=module.propagation_of_regions,
        propagation_power=module.hparams["propagation_power"],
        features=photographs.features(image_id),
    )
    picture = denormalise(sample["image"])
    crops: Crops = {}
    for label, slot in slots:
        background = label == module.hparams["num_classes"]
        mask = outlines.of_background(memory.embeddings[label, slot]) if background else outlines.of_class(label)
        crops[label, slot] = draw_crop(picture, mask, TILE)
    return crops
