"""The records of a COCO split, kept on disk: a second start does not parse 450 MB of JSON again."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rca_lightning.data.array_file import read_arrays, write_arrays
from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES
from rca_lightning.data.columns import Array, Paths, Shapes, Strings, TagLists
from rca_lightning.data.locking import alone_in
from rca_lightning.data.record_table import RecordTable
from rca_lightning.models.download import cache_folder

_log = logging.getLogger(__name__)

FORMAT_VERSION = 1  # raise it whenever other records or arrays come out for the same sources
SMALL = 1 << 22  # bytes; smaller annotation files are parsed in no time and not kept


@dataclass(frozen=True)
class IndexSources:
    """All that the records of a split depend on.

    Attributes:
        annotations: the instances JSON, known by path, size and time of change.
        folder: the image folder, known by the names in it.
        chosen: image ids of the split; None for all.
        tags: tags that replace those of the annotations, by image id.
        with_masks: whether the records hold annotated objects.
        year: the edition of COCO.
    """

    annotations: Path
    folder: Path
    chosen: frozenset[str] | None
    tags: Mapping[str, tuple[int, ...]]
    with_masks: bool
    year: int

    @functools.cached_property
    def files(self) -> frozenset[str]:
        """The names in the image folder."""
        return frozenset(os.listdir(self.folder))  # noqa: PTH208 - names of 118,000 files, not paths

    @functools.cached_property
    def key(self) -> str:
        """Digest of everything, 64 hexadecimal digits."""
        status = self.annotations.stat()
        return _digest(
            FORMAT_VERSION,
            *(str(self.annotations), str(self.annotations.absolute()), status.st_size, status.st_mtime_ns),
            *(str(self.folder.absolute()), _digest(*sorted(self.files))),
            None if self.chosen is None else sorted(self.chosen),
            sorted(self.tags.items()),
            *(self.with_masks, self.year, COCO_CLASSES, list(COCO_CATEGORIES.items())),
        )


def kept_records(sources: IndexSources, build: Callable[[], RecordTable]) -> RecordTable:
    """Return the records of a split from the folder `cache_folder() / "index"`, or build and keep them.

    A file that is damaged or holds anything that the image folder does not is built anew. Of the processes of a machine
    that start together one builds and the others wait for it. Where no file can be written, none is kept.

    Args:
        sources: what the records depend on.
        build: makes them.

    Raises:
        DataError: from `build`.
    """
    if sources.annotations.stat().st_size < SMALL:
        return build()
    path = cache_folder() / "index" / f"coco-{sources.key[:32]}.bin"
    if (found := _kept(path, sources)) is not None:
        return found
    with alone_in(path.parent):
        found = _kept(path, sources)
        return _built(path, sources, build) if found is None else found


def _kept(path: Path, sources: IndexSources) -> RecordTable | None:
    try:
        return _load(path, sources)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.info("%s is built anew: %s", path, error)
        return None


def _built(path: Path, sources: IndexSources, build: Callable[[], RecordTable]) -> RecordTable:
    _log.info("%s is read once, its index is kept in %s", sources.annotations, path)
    table = build()
    try:
        write_arrays(path, _arrays(table), key=sources.key)
        return _load(path, sources)  # mapped, it is shared with the loader processes and other runs
    except OSError as error:
        _say_unwritable(path.parent, str(error))
    except ValueError as error:
        _log.info("%s is not used: %s", path, error)
    return table


@functools.cache
def _say_unwritable(folder: Path, reason: str) -> None:
    _log.warning("no index of COCO is kept in %s (%s); set RCA_CACHE to a folder that can be written", folder, reason)


def _digest(*values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def _arrays(table: RecordTable) -> dict[str, Array]:
    arrays = {
        **_flat("names", table.names),
        "folder": table.images.folder,
        **_flat("files", table.images.names),
        "tags": table.tags.values,
        "tags.ends": table.tags.ends,
        "tags.known": table.tags.known,
    }
    if table.shapes is not None:
        shapes = table.shapes
        arrays |= {"sizes": shapes.sizes, **_flat("where", shapes.where), **_flat("shapes", shapes.packed)}
    return arrays


def _flat(name: str, strings: Strings) -> dict[str, Array]:
    return {name: strings.data, f"{name}.ends": strings.ends}


def _load(path: Path, sources: IndexSources) -> RecordTable:
    arrays = read_arrays(path, key=sources.key)

    def strings(name: str) -> Strings:
        return Strings(arrays[name], _ends(arrays[f"{name}.ends"], count, arrays[name]))

    count = len(arrays["tags.known"])
    names, files = strings("names"), strings("files")
    _check_files(names, files, sources)
    if len(arrays["folder"]) != count or arrays["folder"].any():
        raise ValueError("images of more than one folder")
    tags = arrays["tags"]
    if tags.size and not 0 <= tags.min() <= tags.max() < len(COCO_CLASSES):
        raise ValueError("a tag that is no class")
    shapes = None
    if sources.with_masks and count:
        if len(arrays["sizes"]) != 2 * count:
            raise ValueError("too few sizes")
        shapes = Shapes(arrays["sizes"], strings("where"), strings("shapes"))
    return RecordTable(
        names=names,
        images=Paths((sources.folder,), arrays["folder"], files),
        tags=TagLists(tags, _ends(arrays["tags.ends"], count, tags), arrays["tags.known"]),
        shapes=shapes,
    )


def _ends(ends: Array, count: int, data: Array) -> Array:
    if len(ends) != count + 1 or ends[0] != 0 or ends[-1] != len(data) or (np.diff(ends) < 0).any():
        raise ValueError("its arrays do not fit each other")
    return ends


def _check_files(names: Strings, files: Strings, sources: IndexSources) -> None:
    """What is in the listing of a folder is a plain name, so no path can lead out of it."""
    found = files.texts()
    if not sources.files.issuperset(found):
        raise ValueError("images that are not in the folder")
    if [os.path.splitext(file)[0] for file in found] != names.texts():  # noqa: PTH122 - see list_by_stem
        raise ValueError("ids that are not those of the files")
