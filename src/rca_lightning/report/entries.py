"""Entries of the report: what is measured of a photograph, and how its map and mask are packed for the page."""

from __future__ import annotations

import base64
import io
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.images import image_size, open_image, read_image
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.npz import read_npz
from rca_lightning.report.quality import margin_quality, reasons_to_look, tied_classes

MAP_SIDE = 96
"""Longest side of a map in the page, in cells."""

LABEL_SIDE = 192
"""Longest side of a mask in the page, in pixels."""

_MOST_NUMBERS = 1 << 28  # in the maps of one photograph: 80 maps of 1,800 x 1,800 pixels
_REMEDY = "write the maps anew"

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class ReportEntry:
    """A photograph of the report, by its files.

    Attributes:
        image_id: name of the photograph.
        photograph: image file.
        label: label image (0 background, class + 1, 255 undecided); `None` for one that was skipped.
        maps: npz of class maps as `PseudoLabelWriter` writes it, at any size; `None` where they were not kept.
        tags: names of its classes.
        quality: in `[0, 1]`; `None`: measured by `margin_quality`, where there are maps.
        reason: why a human should look at it; without a label, why it was skipped.
    """

    image_id: str
    photograph: Path
    label: Path | None = None
    maps: Path | None = None
    tags: tuple[str, ...] = ()
    quality: float | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Measured:
    """What the page keeps of an entry: a few kilobytes.

    Attributes:
        entry: the files.
        quality: in `[0, 1]`, if known.
        shares: of the photograph, by index of the class that is drawn.
        reasons: to look at it.
        planes: packed map and mask; see `pack_planes`.
        has_map: whether there is a map in them.
    """

    entry: ReportEntry
    quality: float | None
    shares: dict[int, float]
    reasons: tuple[str, ...]
    planes: bytes
    has_map: bool


def reduce_maps(maps: Tensor, *, long_side: int = MAP_SIDE) -> Tensor:
    """Averages class maps `(K, H, W)` over areas, to at most `long_side` cells on the longer side.

    Example:
        >>> reduce_maps(torch.tensor([[[0.0, 1.0, 0.5, 0.5]]]), long_side=2)
        tensor([[[0.5000, 0.5000]]])
    """
    size = _fitted((maps.shape[1], maps.shape[2]), long_side)
    if size == tuple(maps.shape[1:]) or len(maps) == 0:
        return maps.float() if len(maps) else maps.new_zeros((0, *size), dtype=torch.float32)
    return F.adaptive_avg_pool2d(maps.float()[None], size)[0]


def strongest_class(maps: Tensor, classes: Sequence[int]) -> tuple[Bytes, Bytes]:
    """Finds the strongest class of each cell and its value, in the form that the page thresholds.

    Args:
        maps: `(K, H, W)` in `[0, 1]`.
        classes: class of each map, at most 253.

    Returns:
        `(H, W)` uint8, class + 1 (0 without a class), and `(H, W)` uint8, the value in hundredths rounded up: a value
        exceeds the threshold `k / 100` exactly where this exceeds `k`.
    """
    if len(maps) == 0:
        empty = np.zeros(tuple(maps.shape[1:]), dtype=np.uint8)
        return empty, empty
    value, winner = maps.max(dim=0)
    names = np.asarray(classes, dtype=np.int64)[winner.numpy()] + 1
    hundredths = np.ceil(np.round(value.double().numpy() * 100, 4))  # 0.29 * 100 is slightly above 29
    return names.astype(np.uint8), hundredths.clip(0, 100).astype(np.uint8)


def reduce_label(label: Bytes, *, long_side: int = LABEL_SIDE) -> Bytes:
    """Picks the pixel in the middle of each cell of a label image `(H, W)`, at most `long_side` cells a side."""
    height, width = _fitted((label.shape[0], label.shape[1]), long_side)
    rows = (np.arange(height) * 2 + 1) * label.shape[0] // (2 * height)
    columns = (np.arange(width) * 2 + 1) * label.shape[1] // (2 * width)
    return label[np.ix_(rows, columns)]


def pack_planes(classes: Bytes, values: Bytes, label: Bytes | None) -> bytes:
    """Packs the planes of a photograph by zlib.

    Four bytes come first: width and height of the map, width and height of the label (0: none). Then come the rows of
    the classes, of the differences of each value to the one on its left, modulo 256, and of the label.
    """
    drawn = np.zeros((0, 0), dtype=np.uint8) if label is None else label
    steps = np.diff(values, axis=1, prepend=np.uint8(0)).astype(np.uint8)
    head = bytes([classes.shape[1], classes.shape[0], drawn.shape[1], drawn.shape[0]])
    return zlib.compress(head + classes.tobytes() + steps.tobytes() + drawn.tobytes(), 9)


def measure(entry: ReportEntry, classes: Sequence[str], *, threshold: float) -> Measured:
    """Reads label and maps of an entry and measures them; what cannot be read becomes a reason to look.

    Args:
        entry: the files.
        classes: names of all classes.
        threshold: of the background.
    """
    reasons = [] if entry.reason is None else [entry.reason]
    label: Bytes | None = None
    maps, found, chances = torch.zeros(0, 0, 0), list[int](), dict[int, float]()
    try:
        label = None if entry.label is None else _read_label(entry.label)
        if entry.maps is not None:
            maps, found, chances = _read_maps(entry.maps, len(classes))
    except (DataError, DatasetNotFoundError) as error:
        reasons.append(str(error))
    has_map, ties = bool(maps.shape[1]), None
    quality = entry.quality if entry.quality is not None and math.isfinite(entry.quality) else None
    if has_map:
        cells = maps.numpy()
        quality = margin_quality(cells, threshold) if quality is None else quality
        share, pair = tied_classes(cells, found, threshold)
        ties = None if pair is None else (share, classes[pair[0]], classes[pair[1]])
    shares, undecided = ({}, 0.0) if label is None else _shares(label, len(classes))
    if label is not None:
        reasons += reasons_to_look(
            entry.tags,
            {classes[index]: share for index, share in shares.items()},
            quality=quality,
            undecided=undecided,
            ties=ties,
            probabilities={classes[index]: chance for index, chance in chances.items()},
        )
    planes = pack_planes(*strongest_class(maps, found), None if label is None else reduce_label(label))
    return Measured(entry, quality, shares, tuple(reasons), planes, has_map)


def thumbnail(path: Path, *, long_side: int, quality: int = 74) -> str | None:
    """Encodes a small JPEG of a photograph in base64; `None` where it cannot be read."""
    try:
        height, width = image_size(path)
        reduction = next((r for r in (8, 4, 2) if max(height, width) >= r * long_side), 1)
        picture = Image.fromarray(read_image(path, reduction=reduction))
    except (DataError, DatasetNotFoundError):
        return None
    small = _fitted((picture.height, picture.width), long_side)
    picture = picture.resize((small[1], small[0]), Image.Resampling.BICUBIC, reducing_gap=3.0)
    return encode_jpeg(picture, quality=quality)


def encode_jpeg(picture: Image.Image, *, quality: int = 74) -> str:
    """Encodes a picture as JPEG in base64."""
    file = io.BytesIO()
    picture.save(file, format="JPEG", quality=quality, optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def _read_label(path: Path) -> Bytes:
    with open_image(path) as image:
        if image.mode not in ("P", "L"):
            raise DataError(f"{path}: a label image of mode {image.mode}; write it as a palette or grey image")
        return np.array(image, dtype=np.uint8)


def _read_maps(path: Path, num_classes: int) -> tuple[Tensor, list[int], dict[int, float]]:
    arrays = read_npz(path, {"maps": _MOST_NUMBERS, "classes": num_classes}, remedy=_REMEDY)
    values, classes = arrays["maps"], arrays["classes"].tolist()
    if values.ndim != 3 or len(classes) != len(values) or min(values.shape[1:]) < 1:
        raise DataError(f"{path}: {values.shape} maps of {len(classes)} classes; {_REMEDY}")
    if not all(isinstance(index, int) and 0 <= index < num_classes for index in classes):
        raise DataError(f"{path}: classes {classes[:8]} of {num_classes}; {_REMEDY}")
    maps = reduce_maps(torch.from_numpy(values.astype(np.float32)))
    if not bool(torch.isfinite(maps).all()):
        raise DataError(f"{path}: maps that are not finite; {_REMEDY}")
    try:
        chances = read_npz(path, {"probabilities": num_classes}, remedy=_REMEDY)["probabilities"].tolist()
    except DataError:  # maps of another source have none
        chances = []
    known = dict(zip(classes, chances, strict=True)) if len(chances) == len(classes) else {}
    return maps.clamp(0, 1), classes, {index: float(chance) for index, chance in known.items()}


def _shares(label: Bytes, num_classes: int) -> tuple[dict[int, float], float]:
    counts = np.bincount(label.ravel(), minlength=IGNORE_INDEX + 1) / label.size
    drawn = {index: float(counts[index + 1]) for index in range(num_classes) if counts[index + 1] > 0}
    return drawn, float(counts[IGNORE_INDEX])


def _fitted(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    scale = min(1.0, long_side / max(size))
    return max(1, math.floor(size[0] * scale + 0.5)), max(1, math.floor(size[1] * scale + 0.5))
