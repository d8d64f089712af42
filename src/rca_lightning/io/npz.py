"""Reads untrusted npz and npy files: unpickles nothing and bounds what is read and decompressed."""

from __future__ import annotations

import math
import sys
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from rca_lightning.errors import DataError
from rca_lightning.io.listing import require_regular_file

_KINDS = frozenset("fiub")  # of numbers; anything else might be objects, which are pickled
_LONGEST_TEXT = 1024  # bytes


def read_npz(
    path: Path, most: Mapping[str, int], *, remedy: str, texts: Collection[str] = ()
) -> dict[str, npt.NDArray[Any]]:
    """Read arrays of numbers, or of short texts, from an npz file.

    `numpy.load` allocates what the head of an array announces and decompresses a whole member, so a file of a few
    kilobytes fills the memory. Here the head is compared with the bound before anything is decompressed.

    Args:
        path: the file.
        most: names of the arrays to read, and the most numbers each may have.
        remedy: what to do about a file that cannot be used; ends the error.
        texts: names of the arrays that hold texts.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: damaged, an array is missing, has more numbers, or holds anything else.
    """
    require_regular_file(path, remedy=remedy)
    try:
        with zipfile.ZipFile(path) as archive:
            return {name: _read(archive, f"{name}.npy", numbers, text=name in texts) for name, numbers in most.items()}
    except Exception as error:  # zip, zlib and numpy each have errors of their own for a damaged file
        raise DataError(f"{path}: its arrays could not be read ({error}); {remedy}") from error


def read_npy(path: Path, most: int, *, remedy: str, if_pickled: str) -> npt.NDArray[Any]:
    """Read the array of numbers of an npy file.

    Args:
        path: the file.
        most: the most numbers that it may have.
        remedy: what to do about a file that cannot be used; ends the error.
        if_pickled: the same for Python objects, such as a dict, which are pickled and would run code when read.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: damaged, with more numbers, or it holds anything else than numbers.
    """
    require_regular_file(path, remedy=remedy)
    try:
        with path.open("rb") as file:
            return _read_array(file, "the array", most)
    except _PickledError as error:
        raise DataError(f"{path}: Python objects, which are not unpickled; {if_pickled}") from error
    except Exception as error:  # the parser of the head has errors of its own
        raise DataError(f"{path}: its array could not be read ({error}); {remedy}") from error


class _PickledError(ValueError):
    """An array of Python objects."""


def _read(archive: zipfile.ZipFile, name: str, most: int, *, text: bool) -> npt.NDArray[Any]:
    # The other ways to compress want a window of up to 4 GB; NumPy writes none of them.
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise ValueError(f"{name} is compressed in an unknown way")
    with archive.open(name) as file:
        return _read_array(file, name, most, text=text)


def _read_array(file: IO[bytes], name: str, most: int, *, text: bool = False) -> npt.NDArray[Any]:
    version = np.lib.format.read_magic(file)
    if version != (1, 0):  # NumPy writes later ones for records only; their heads may be 4 GB long
        raise ValueError(f"an array of version {version}")
    shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype.hasobject:
        raise _PickledError(f"{name} holds {dtype}, not numbers")
    if text and (dtype.kind != "U" or not 0 < dtype.itemsize <= _LONGEST_TEXT):
        raise ValueError(f"{name} holds {dtype}, not short texts")
    if not text and dtype.kind not in _KINDS:
        raise ValueError(f"{name} holds {dtype}, not numbers")
    count = math.prod(shape)
    if min(shape, default=0) < 0 or count > most:
        raise ValueError(f"{name} has the shape {shape}, which is more than {most} numbers")
    content = file.read(count * dtype.itemsize)
    if file.read(1):  # which also lets zipfile compare the checksum
        raise ValueError(f"{name} is longer than its shape {shape}")
    if text and (np.frombuffer(content, f"{dtype.byteorder}u4") > sys.maxunicode).any():
        raise ValueError(f"{name} holds what is no character")  # NumPy would end in a SystemError
    array = np.frombuffer(bytearray(content), dtype, count)
    return array.reshape(shape, order="F" if by_column else "C")
