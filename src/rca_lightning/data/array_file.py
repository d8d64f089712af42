"""Flat arrays in one file that processes map into memory, so that they all share it.

The file is 24 bytes that say what it is, a header in JSON, and the arrays, each at a multiple of 64 bytes. A checksum
covers all of it. Nothing in it is ever run or unpickled.
"""

from __future__ import annotations

import functools
import json
import mmap
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rca_lightning.atomic import write_atomically
from rca_lightning.errors import DataError

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
