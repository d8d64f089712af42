"""Caches the records of a COCO split on disk, so that a second start does not parse 450 MB of JSON."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rca_lightning.data.coco_categories import Categories
from rca_lightning.data.records import RecordTable
from rca_lightning.io.atomic import alone_in
from rca_lightning.io.download import cache_folder

_log = logging.getLogger(__name__)

FORMAT_VERSION = 3  # raise it whenever other records come out for the same sources
SMALL = 1 << 22  # bytes; smaller annotation files are parsed in no time and not kept


@dataclass(frozen=True)
class IndexSources:
    """All that the records of a split depend on."""

    annotations: Path  # the instances JSON, known by path, size and time of change
    folder: Path  # of the images, known by the names in it
    chosen: frozenset[str] | None  # image ids of the split; None for all
    tags: Mapping[str, tuple[int, ...]]  # tags that replace those of the annotations, by image id
    with_masks: bool  # whether the records hold annotated objects
    year: int  # the edition of COCO
    categories: Categories  # of the data set; those of the annotations must be the same

    def key(self) -> str:
        """Digest of everything, 64 hexadecimal digits."""
        status = self.annotations.stat()
        files = sorted(os.listdir(self.folder))  # noqa: PTH208 - names of 118,000 files, not paths
        sources = [
            FORMAT_VERSION,
            *(str(self.annotations), str(self.annotations.absolute()), status.st_size, status.st_mtime_ns),
            *(str(self.folder), str(self.folder.absolute()), files),
            None if self.chosen is None else sorted(self.chosen),
            sorted(self.tags.items()),
            *(self.with_masks, self.year),
            *(self.categories.ids, self.categories.names, self.categories.reserved),
        ]
        return hashlib.sha256(json.dumps(sources).encode()).hexdigest()


def kept_records(sources: IndexSources, build: Callable[[], RecordTable]) -> RecordTable:
    """Return the records of a split from the folder `cache_folder() / "index"`, or build and keep them.

    A damaged file is built anew. Of the processes of a machine that start together one builds and the others wait for
    it. Where no file can be written, none is kept.
    """
    if sources.annotations.stat().st_size < SMALL:
        return build()
    key = sources.key()
    path = cache_folder() / "index" / f"coco-{key[:32]}.bin"
    if (kept := _read(path, key)) is not None:
        return kept
    with alone_in(path.parent):
        if (kept := _read(path, key)) is not None:  # another process was first
            return kept
        _log.info("%s is read once, its index is kept in %s", sources.annotations, path)
        table = build()
        try:
            table.write(path, key=key)
        except OSError as error:
            _warn_unwritable(path.parent, str(error))
            return table
        return _read(path, key) or table  # mapped, it is shared with the loading processes and other runs


def _read(path: Path, key: str) -> RecordTable | None:
    try:
        return RecordTable.read(path, key=key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.info("%s is built anew: %s", path, error)
        return None


@functools.cache
def _warn_unwritable(folder: Path, reason: str) -> None:
    _log.warning("no index of COCO is kept in %s (%s); set RCA_CACHE to a folder that can be written", folder, reason)
