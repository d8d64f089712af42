"""The records of a COCO split, kept on disk: a second start does not parse 450 MB of JSON again."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES
from rca_lightning.data.records import Array, Paths, RecordTable, Shapes, Strings, TagLists
from rca_lightning.errors import DataError
from rca_lightning.io.atomic import alone_in, write_atomically
from rca_lightning.io.download import cache_folder

_MAGIC = b"RCAARRAY"
_START = struct.Struct("<8sQQ")  # magic, bytes of the header, CRC-32 of these two and of all that follows
_ALIGN = 64
_DTYPES = frozenset({"|u1", "<i4", "<i8"})
_CHUNK = 1 << 24


class MappedArray(np.ndarray[Any, Any]):
    """An array in a mapped file; pickled, it is the file's path and its name there.

    Parts of it and what is computed from it are ordinary arrays.
    """

    origin: tuple[str, int, str] | None = None

    def __array_finalize__(self, of: object) -> None:
        self.origin = None

    def __reduce__(self) -> Any:
        return super().__reduce__() if self.origin is None else (_attach, self.origin)


def write_arrays(path: Path, arrays: Mapping[str, npt.NDArray[Any]], *, key: str) -> None:
    """Write the file whole or not at all.

    Args:
        path: the file.
        arrays: one-dimensional, of uint8, int32 or int64.
        key: what `read_arrays` has to ask for.

    Raises:
        OSError: from the file system.
    """
    listed: dict[str, tuple[str, int, int]] = {}
    offset = 0
    for name, array in arrays.items():
        listed[name] = (array.dtype.str, array.size, offset)
        offset += -(-array.nbytes // _ALIGN) * _ALIGN
    header = json.dumps({"key": key, "arrays": listed}).encode()
    header += b" " * (-(_START.size + len(header)) % _ALIGN)
    checksum = zlib.crc32(header, _seed(len(header)))
    for part in _parts(arrays):
        checksum = zlib.crc32(part, checksum)

    def write(file: IO[bytes]) -> None:
        file.write(_START.pack(_MAGIC, len(header), checksum))
        file.write(header)
        for part in _parts(arrays):
            file.write(part)

    write_atomically(path, write)


def read_arrays(path: Path, *, key: str) -> dict[str, MappedArray]:
    """Map the arrays of a file into memory, read-only.

    Args:
        path: the file.
        key: the one it was written with.

    Raises:
        OSError: no such file, or it cannot be read.
        ValueError: not such a file, damaged, or written with another key.
    """
    content, header, checksum = _map(path)
    with memoryview(content) as view:
        found = _seed(header["start"] - _START.size)
        for start in range(_START.size, len(view), _CHUNK):
            found = zlib.crc32(view[start : start + _CHUNK], found)
    if found != checksum:
        raise ValueError("its checksum is wrong")
    if header["key"] != key:
        raise ValueError("it belongs to other sources")
    return _arrays(path, content, header, checksum)


def _map(path: Path) -> tuple[mmap.mmap, dict[str, Any], int]:
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        magic, length, checksum = _START.unpack_from(content)
        header = json.loads(content[_START.size : _START.size + length])
    except (struct.error, ValueError) as error:
        raise ValueError(f"it has no readable header ({error})") from error
    if magic != _MAGIC:
        raise ValueError("it is a file of another kind")
    header["start"] = _START.size + length
    return content, header, checksum


def _arrays(path: Path, content: mmap.mmap, header: dict[str, Any], checksum: int) -> dict[str, MappedArray]:
    found = {}
    for name, (dtype, count, offset) in header["arrays"].items():
        if dtype not in _DTYPES:
            raise ValueError(f"an array of type {dtype!r}")
        start = header["start"] + offset
        found[name] = array = np.frombuffer(content, dtype, count, start).view(MappedArray)
        array.origin = (str(path), checksum, name)
    return found


def _seed(length: int) -> int:
    return zlib.crc32(_START.pack(_MAGIC, length, 0))


def _parts(arrays: Mapping[str, npt.NDArray[Any]]) -> Iterator[memoryview | bytes]:
    for array in arrays.values():
        yield array.data.cast("B") if array.size else b""
        yield bytes(-array.nbytes % _ALIGN)


def _attach(path: str, checksum: int, name: str) -> MappedArray:
    return _attached(path, checksum)[name]


@functools.lru_cache(maxsize=8)
def _attached(path: str, checksum: int) -> dict[str, MappedArray]:
    """Map a file anew in a process that was started by the one which has checked it."""
    try:
        content, header, found = _map(Path(path))
        if found != checksum:
            raise ValueError("it was replaced by another")
        return _arrays(Path(path), content, header, checksum)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened again ({error}); start the run anew to rebuild it") from error


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
        write_arrays(path, _coco_arrays(table), key=sources.key)
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


def _coco_arrays(table: RecordTable) -> dict[str, Array]:
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
