"""Pixels of each image by true class, drawn class and strength: every score is derived from them after the pass."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.io.npz import read_npz

Integers = npt.NDArray[np.integer[Any]]
Floats = npt.NDArray[np.float64]

_COLUMNS = ("image", "true", "drawn", "interval", "pixels", "near")
_TYPES = (np.int32, np.int32, np.int32, np.int16, np.int32, np.int32)
_IMAGES_AT_ONCE = 1024
_LEAST_CLASSES = 4096  # that a file may have, however short it is: tables are as large as their square
_REMEDY = "score again, which writes it anew"


@dataclass(frozen=True, kw_only=True)
class ImageCounts:
    """Counts of the scored pixels of `I` images; only cells of the table that have pixels are kept, `N` in all.

    An image of a few classes has a few dozen cells. Class 0 is the background.

    Attributes:
        ids: names of the images, sorted.
        num_classes: foreground classes `L`.
        thresholds: ascending background thresholds; none for label images.
        image: `(N,)` index of the image of a cell, ascending.
        true: `(N,)` class in the mask, `0..L`.
        drawn: `(N,)` of seeds the strongest class, `1..L`; of label images the label, `0..L`, or `L + 1`: not drawn.
        interval: `(N,)` how many thresholds lie below the strength; 0 of label images.
        pixels: `(N,)` pixels of the cell, 1 or more.
        near: `(N,)` those of them that lie near an outline of the mask; see `near_outlines`.
    """

    ids: tuple[str, ...]
    num_classes: int
    thresholds: tuple[float, ...]
    image: Integers
    true: Integers
    drawn: Integers
    interval: Integers
    pixels: Integers
    near: Integers

    def drawn_at(self, threshold: float | None) -> Integers:
        """Drawn class `(N,)` of each cell at a threshold, which must be one of `thresholds`; `None` for label images.

        Raises:
            ArgumentError: for another threshold.
        """
        if threshold is None and not self.thresholds:
            return self.drawn
        if threshold not in self.thresholds:
            known = ", ".join(f"{value:g}" for value in self.thresholds) or "None"
            raise ArgumentError("threshold", threshold, f"counted were {known}; give one of them")
        return np.where(self.interval > self.thresholds.index(threshold), self.drawn, 0)

    def table(self) -> Integers:
        """Pixels of all images together: `(L + 1, L, T + 1)` of seeds, `(L + 1, L + 2)` of label images."""
        if not self.thresholds:
            return self.confusion(None)
        shape = (self.num_classes + 1, self.num_classes, len(self.thresholds) + 1)
        return _added(shape, (self.true, self.drawn - 1, self.interval), self.pixels)

    def confusion(self, threshold: float | None, *, near: bool = False) -> Integers:
        """Confusion matrix `(L + 1, L + 2)` of all images: true class, drawn class; the last column is not drawn.

        Args:
            threshold: see `drawn_at`.
            near: only pixels near outlines.
        """
        shape = (self.num_classes + 1, self.num_classes + 2)
        return _added(shape, (self.true, self.drawn_at(threshold)), self.near if near else self.pixels)

    def by_image(self, threshold: float | None) -> Iterator[tuple[slice, Floats]]:
        """Yields sums of the images, some at a time: their rows, and `(rows, 3, L + 1)` hit, true and drawn pixels.

        Args:
            threshold: see `drawn_at`.
        """
        drawn, classes = self.drawn_at(threshold), self.num_classes + 1
        for first in range(0, len(self.ids), _IMAGES_AT_ONCE):
            last = min(first + _IMAGES_AT_ONCE, len(self.ids))
            begin, end = np.searchsorted(self.image, [first, last])
            row, true, label = self.image[begin:end] - first, self.true[begin:end], drawn[begin:end]
            pixels, hit, seen = self.pixels[begin:end], true == label, label < classes
            shape = (last - first, classes)
            parts = (
                _added(shape, (row[hit], true[hit]), pixels[hit]),
                _added(shape, (row, true), pixels),
                _added(shape, (row[seen], label[seen]), pixels[seen]),
            )
            yield slice(first, last), np.stack(parts, axis=1).astype(np.float64)

    def take(self, rows: Integers) -> ImageCounts:
        """Counts of some of the images.

        Args:
            rows: their numbers, ascending, each once.
        """
        place = np.full(len(self.ids), -1)
        place[rows] = np.arange(len(rows))
        kept = place[self.image] >= 0
        columns = {name: getattr(self, name)[kept] for name in _COLUMNS if name != "image"}
        ids = tuple(self.ids[row] for row in rows)
        known: dict[str, Any] = {"ids": ids, "num_classes": self.num_classes, "thresholds": self.thresholds}
        return ImageCounts(**known, image=place[self.image][kept], **columns)

    def save(self, path: Path) -> None:
        """Writes an npz file without pickle, whole or not at all."""
        arrays = {name: getattr(self, name).astype(kind) for name, kind in zip(_COLUMNS, _TYPES, strict=True)}
        known: dict[str, Any] = {
            "ids": np.array(self.ids, dtype=np.str_),
            "thresholds": np.array(self.thresholds, dtype=np.float64),
        }
        known["num_classes"] = np.array(self.num_classes, dtype=np.int64)
        write_atomically(path, lambda file: np.savez_compressed(file, **(known | arrays)))

    @classmethod
    def load(cls, path: Path) -> ImageCounts:
        """Reads what `save` has written.

        Raises:
            DatasetNotFoundError: no such file.
            DataError: if it is damaged, or its numbers are none of counts.
        """
        # No number of ours takes less than a quarter of a byte; more would be a file made to fill the memory.
        most = 4 * path.stat().st_size + 1024 if path.is_file() else 0
        names = ("ids", "thresholds", "num_classes", *_COLUMNS)
        arrays = read_npz(path, dict.fromkeys(names, most), remedy=_REMEDY, texts=("ids",))
        counts = cls(
            ids=tuple(arrays["ids"].tolist()) if arrays["ids"].ndim == 1 else (),
            num_classes=int(arrays["num_classes"].ravel()[0]) if arrays["num_classes"].size == 1 else 0,
            thresholds=tuple(float(value) for value in arrays["thresholds"].ravel()),
            **{name: arrays[name] for name in _COLUMNS},
        )
        if not counts._is_sound(max(most, _LEAST_CLASSES)):
            raise DataError(f"{path}: its numbers are none of scored images; {_REMEDY}")
        return counts

    def _is_sound(self, most_classes: int) -> bool:
        columns = [getattr(self, name) for name in _COLUMNS]
        if any(column.ndim != 1 or column.dtype.kind != "i" or len(column) != len(self.image) for column in columns):
            return False
        ordered = list(self.thresholds) == sorted(set(self.thresholds)) and bool((np.diff(self.image) >= 0).all())
        if not ordered or not all(0 <= threshold <= 1 for threshold in self.thresholds):
            return False
        if not self.ids or not 1 <= self.num_classes <= most_classes:
            return False
        most = (len(self.ids) - 1, self.num_classes, self.num_classes + (not self.thresholds), len(self.thresholds))
        least = (0, 0, int(bool(self.thresholds)), 0)
        within = all(
            bool(((column >= low) & (column <= high)).all())
            for column, low, high in zip(columns, least, most, strict=False)
        )
        return within and bool(((self.near >= 0) & (self.near <= self.pixels)).all())


def mean_iou(hit: Floats, true: Floats, drawn: Floats) -> Floats:
    """Mean IoU `(...)` from pixels `(..., C)`; a class without any takes no part, and without one it is NaN."""
    union = true + drawn - hit
    with np.errstate(invalid="ignore", divide="ignore"):
        known = (union > 0).sum(axis=-1)
        return np.asarray(np.where(union > 0, hit / union, 0.0).sum(axis=-1) / known)


def ids_digest(ids: Sequence[str]) -> str:
    """SHA-256 of the sorted names of images, one a line: two splits of one digest are the same images."""
    return hashlib.sha256("\n".join(sorted(ids)).encode("utf-8", "surrogateescape")).hexdigest()


def _added(shape: tuple[int, ...], index: tuple[Integers, ...], pixels: Integers) -> Integers:
    """Sums of pixels by index, `shape`."""
    cell = np.ravel_multi_index(tuple(part.astype(np.int64) for part in index), shape)
    sums = np.bincount(cell, weights=pixels, minlength=int(np.prod(shape)))  # in float64: exact up to 2 ** 53
    return sums.astype(np.int64).reshape(shape)
