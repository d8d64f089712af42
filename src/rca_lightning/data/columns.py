"""Columns of a `RecordTable`: many small values in a few flat arrays.

A Python object is written to whenever it is looked at, as its references are counted, so every loader process soon has
copies of those it shares with its parent. Arrays stay shared.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.tagfile import Tags

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class Strings:
    """N strings of bytes.

    Attributes:
        data: all of them, end to end, uint8.
        ends: (N + 1,) int64; string i is `data[ends[i] : ends[i + 1]]`.
    """

    data: Array
    ends: Array

    @classmethod
    def pack(cls, values: Sequence[bytes]) -> Strings:
        """Lay strings end to end."""
        return cls(np.frombuffer(b"".join(values), dtype=np.uint8), _ends(map(len, values)))

    @classmethod
    def pack_text(cls, values: Iterable[str]) -> Strings:
        """The same for text, which may hold what the file system knows and UTF-8 does not."""
        return cls.pack([os.fsencode(value) for value in values])

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.ends[row] : self.ends[row + 1]].tobytes()

    def text(self, row: int) -> str:
        """A string that was packed as text."""
        return os.fsdecode(self[row])

    def texts(self) -> list[str]:
        """All strings, packed as text; faster than one by one."""
        data = self.data.tobytes()
        return [os.fsdecode(data[start:end]) for start, end in itertools.pairwise(self.ends.tolist())]


@dataclass(frozen=True, eq=False)
class Paths:
    """N files or None.

    Attributes:
        folders: those they lie in.
        folder: (N,) int32, the index of each one's folder; -1 for None.
        names: their names in it.
    """

    folders: tuple[Path, ...]
    folder: Array
    names: Strings

    @classmethod
    def pack(cls, values: Iterable[Path | None]) -> Paths:
        """Take paths apart."""
        folders: dict[Path, int] = {}
        rows = [
            (-1, "") if path is None else (folders.setdefault(path.parent, len(folders)), path.name) for path in values
        ]
        folder = np.array([number for number, _ in rows], dtype=np.int32)
        return cls(tuple(folders), folder, Strings.pack_text(name for _, name in rows))

    def __getitem__(self, row: int) -> Path | None:
        number = int(self.folder[row])
        return None if number < 0 else self.folders[number] / self.names.text(row)

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(N,), where there is a file."""
        return np.asarray(self.folder >= 0)


@dataclass(frozen=True, eq=False)
class TagLists:
    """N tuples of class indices or None.

    Attributes:
        values: all indices, int32.
        ends: (N + 1,) int64, like those of `Strings`.
        known: (N,) uint8, 0 for None.
    """

    values: Array
    ends: Array
    known: Array

    @classmethod
    def pack(cls, values: Sequence[Tags | None]) -> TagLists:
        """Lay tags end to end."""
        flat = np.fromiter(itertools.chain.from_iterable(tags or () for tags in values), dtype=np.int32)
        known = np.array([tags is not None for tags in values], dtype=np.uint8)
        return cls(flat, _ends(len(tags or ()) for tags in values), known)

    def __getitem__(self, row: int) -> Tags | None:
        if not self.known[row]:
            return None
        return tuple(self.values[self.ends[row] : self.ends[row + 1]].tolist())


@dataclass(frozen=True, eq=False)
class Shapes:
    """N annotations of `CocoShapes` or None.

    Attributes:
        sizes: (2 N,) int32, height and width of each in turn; -1 for None.
        where: file and image of each, for errors.
        packed: the objects.
    """

    sizes: Array
    where: Strings
    packed: Strings

    @classmethod
    def pack(cls, values: Sequence[CocoShapes | None]) -> Shapes:
        """Lay packed objects end to end."""
        sizes = [(-1, -1) if shapes is None else (shapes.height, shapes.width) for shapes in values]
        return cls(
            np.array(sizes, dtype=np.int32).reshape(-1),
            Strings.pack_text("" if shapes is None else shapes.where for shapes in values),
            Strings.pack([b"" if shapes is None else shapes.packed for shapes in values]),
        )

    def __getitem__(self, row: int) -> CocoShapes | None:
        height, width = int(self.sizes[2 * row]), int(self.sizes[2 * row + 1])
        if height < 0:
            return None
        return CocoShapes(height=height, width=width, where=self.where.text(row), packed=self.packed[row])

    @property
    def present(self) -> npt.NDArray[np.bool_]:
        """(N,), where there is an annotation."""
        return np.asarray(self.sizes[::2] >= 0)


def _ends(lengths: Iterable[int]) -> Array:
    return np.fromiter(itertools.accumulate(lengths, initial=0), dtype=np.int64)
