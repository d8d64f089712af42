"""Counts and lists the images that could not be read; too many end the run."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from rca_lightning.data.sample import SkippedImage
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.io.atomic import lock
from rca_lightning.io.listing import first_few

OnBadImage = Literal["raise", "skip"]
FILE_NAME = "bad_images.csv"
_HEADER = ["split", "image", "reason"]

_log = logging.getLogger(__name__)


class BadImages:
    """Counts the images of a run that were skipped.

    Every process writes those it meets to one file, under a lock, so that an image stands there once, whichever
    processes meet it in whichever epochs, and the number of lines is the number over all processes.

    Args:
        most: share of the images of a split that may be bad, in `[0, 1]`; unless it is 0, one image always may.

    Raises:
        ArgumentError: a share outside `[0, 1]`.

    Example:
        >>> bad = BadImages(0.5)
        >>> bad.begin({"val": 4}, folder=None, first=True)
        >>> bad.note([SkippedImage("val", "a", "cut off"), SkippedImage("val", "a", "cut off")])
        >>> bad.skipped
        [SkippedImage(split='val', image_id='a', reason='cut off')]
    """

    def __init__(self, most: float) -> None:
        if not 0 <= most <= 1:
            raise ArgumentError("max_bad_images", most, "give a share of the images of a split, in [0, 1]")
        self.most = most
        self.path: Path | None = None
        self._sizes: dict[str, int] = {}
        self._seen: dict[tuple[str, str], SkippedImage] = {}

    @property
    def skipped(self) -> list[SkippedImage]:
        """Those that this process has met, in the order in which it did."""
        return list(self._seen.values())

    def begin(self, sizes: Mapping[str, int], *, folder: Path | None, first: bool) -> None:
        """Start anew for some splits.

        Args:
            sizes: number of images of each split that will be read.
            folder: where `bad_images.csv` is written; None: nowhere.
            first: whether this process removes the lines of an earlier run on these splits; the others must wait for
                it before they note anything.
        """
        self._sizes = dict(sizes)
        self._seen.clear()
        self.path = None if folder is None else folder / FILE_NAME
        try:
            if first and self.path is not None and self.path.is_file():
                with _locked(self.path) as lines:
                    lines[:] = [line for line in lines if line.split not in sizes]
        except OSError as error:
            self._count_alone(error)

    def note(self, unread: Iterable[SkippedImage]) -> None:
        """Add images that were skipped.

        Raises:
            DataError: they are now more than may be.
        """
        new = [image for image in unread if (image.split, image.image_id) not in self._seen]
        self._seen.update(((image.split, image.image_id), image) for image in new)
        listed = self._add(new) if new else []
        for split in dict.fromkeys(image.split for image in new):
            reasons = [image.reason for image in new if image.split == split]
            _log.warning("split %r: skipped: %s", split, first_few(reasons))
            self._check(split, [image for image in listed if image.split == split])

    def summarise(self) -> None:
        """Log how many images of each split all processes have skipped."""
        listed = self.skipped
        try:
            if self.path is not None and self.path.is_file():
                with _locked(self.path) as listed:
                    pass
        except OSError as error:
            self._count_alone(error)
        for split, size in self._sizes.items():
            if count := sum(image.split == split for image in listed):
                where = self.path or "no file, for there is no Trainer"
                _log.warning("split %r: %d of %d images could not be read; listed in %s", split, count, size, where)

    def _add(self, new: list[SkippedImage]) -> list[SkippedImage]:
        """Write those that are not in the file yet; returns all of the file, else all of this process."""
        if self.path is None:
            return self.skipped
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with _locked(self.path) as lines:
                listed = {(line.split, line.image_id) for line in lines}
                lines.extend(image for image in new if (image.split, image.image_id) not in listed)
            return lines
        except OSError as error:
            self._count_alone(error)
            return self.skipped

    def _count_alone(self, error: OSError) -> None:
        _log.warning("%s cannot be written (%s): each process counts its own bad images", self.path, error)
        self.path = None

    def _check(self, split: str, listed: list[SkippedImage]) -> None:
        size = self._sizes.get(split, 0)
        allowed = max(1, int(self.most * size)) if self.most else 0
        if len(listed) > allowed:
            where = f"; {self.path} lists them" if self.path else ""
            raise DataError(
                f"split {split!r}: {len(listed)} of {size} images could not be read, and "
                f"max_bad_images={self.most} allows {allowed}: {first_few(image.image_id for image in listed)}{where}. "
                "Repair them or leave them out by split_files, or raise max_bad_images"
            )


@contextmanager
def _locked(path: Path) -> Iterator[list[SkippedImage]]:
    """Yields the lines of the file under its lock and writes them back if they were changed."""
    with path.open("a+", encoding="utf-8", newline="", errors="surrogateescape") as file:
        lock(file.fileno())  # until the file is closed
        file.seek(0)
        lines = [SkippedImage(*row) for row in csv.reader(file) if len(row) == len(_HEADER) and row != _HEADER]
        before = list(lines)
        yield lines
        if lines != before:
            file.truncate(0)
            csv.writer(file, lineterminator="\n").writerows([_HEADER, *lines])
