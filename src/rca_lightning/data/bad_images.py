"""Images that could not be read and were passed over: each is listed once, and too many end the run."""

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
    """Counts the images of a run that were passed over.

    Each process notes those it meets in one file, a line as soon as it meets it. The lock of the file makes sure that
    an image that several processes meet, or one process in several epochs, stands there once, so that the number of
    lines is the number of images over all processes.

    Args:
        most: share of the images of a split that may be bad, in `[0, 1]`; unless it is 0, one image always may.

    Raises:
        ArgumentError: a share outside `[0, 1]`.

    Example:
        >>> bad = BadImages(0.5)
        >>> bad.begin({"val": 4}, folder=None, first=True)
        >>> bad.note([SkippedImage("val", "a", "cut off"), SkippedImage("val", "a", "cut off")])
        >>> bad.found
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
    def found(self) -> list[SkippedImage]:
        """Those that this process has met, in the order in which it did."""
        return list(self._seen.values())

    def begin(self, sizes: Mapping[str, int], *, folder: Path | None, first: bool) -> None:
        """Start anew for some splits.

        Args:
            sizes: number of images of each split that will be read.
            folder: where `bad_images.csv` is written; None: nowhere.
            first: whether this is the process that takes lines of an earlier run on these splits out of the file; no
                other may note anything before that.
        """
        self._sizes = dict(sizes)
        self._seen.clear()
        self.path = None if folder is None else folder / FILE_NAME
        if first and self.path is not None and self.path.is_file():
            with _locked(self.path) as lines:
                lines[:] = [line for line in lines if line.split not in sizes]

    def note(self, unread: Iterable[SkippedImage]) -> None:
        """Add images that were passed over.

        Raises:
            DataError: they are now more than may be.
        """
        new = [image for image in unread if (image.split, image.image_id) not in self._seen]
        if not new:
            return
        for image in new:
            self._seen[image.split, image.image_id] = image
        listed = self.found if self.path is None else self._added(self.path, new)
        for split in dict.fromkeys(image.split for image in new):
            reasons = [image.reason for image in new if image.split == split]
            _log.warning("split %r: passed over: %s", split, first_few(reasons))
            self._check(split, [image for image in listed if image.split == split])

    def summarise(self) -> None:
        """Say in the log how many images of each split all processes have passed over."""
        listed = self.found
        if self.path is not None and self.path.is_file():
            with _locked(self.path) as listed:
                pass
        for split, size in self._sizes.items():
            if count := sum(image.split == split for image in listed):
                where = self.path or "no file, for there is no Trainer"
                _log.warning("split %r: %d of %d images could not be read; listed in %s", split, count, size, where)

    def _added(self, path: Path, new: list[SkippedImage]) -> list[SkippedImage]:
        try:
            return _add(path, new)
        except OSError as error:
            _log.warning("%s cannot be written (%s): each process counts its own bad images", path, error)
            self.path = None
            return self.found

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


def _add(path: Path, new: list[SkippedImage]) -> list[SkippedImage]:
    """Write down those that are not there yet; returns all of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path) as lines:
        there = {(line.split, line.image_id) for line in lines}
        lines.extend(image for image in new if (image.split, image.image_id) not in there)
    return lines


@contextmanager
def _locked(path: Path) -> Iterator[list[SkippedImage]]:
    """The content of the file, to be changed while no other process can; it is written back afterwards."""
    with path.open("a+", encoding="utf-8", newline="", errors="surrogateescape") as file:
        lock(file.fileno())  # until the file is closed
        file.seek(0)
        lines = [SkippedImage(*row) for row in csv.reader(file) if len(row) == len(_HEADER) and row != _HEADER]
        before = list(lines)
        yield lines
        if lines != before:
            file.truncate(0)
            csv.writer(file, lineterminator="\n").writerows([_HEADER, *lines])
