"""Records of the images of a split (files, tags), packed in arrays that loading processes share."""

from __future__ import annotations

import array
import bisect
import itertools
import json
import shutil
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Protocol, overload

import numpy as np
import numpy.typing as npt

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.tag_files import Tags
from rca_lightning.errors import DataError
from rca_lightning.io.atomic import write_atomically


@dataclass(frozen=True)
class Record:
    """One image of a split.

    Attributes:
        image_id: name of the image file without its ending.
        image: the image file.
        tags: class indices present; empty if none of the classes, None if unknown.
        mask: index mask file, or annotated objects to draw it from; None without a mask.
        saliency: saliency map file; None without one.
    """

    image_id: str
    image: Path
    tags: Tags | None = None
    mask: Path | CocoShapes | None = None
    saliency: Path | None = None


class Source(Protocol):
    """A data set on disk.

    Attributes:
        root: its folder.
        needs_all_tags: whether unknown tags of an image to train on or to score are an error, as in a data set that has
            them all; else such an image is not trained on.
    """

    root: Path
    needs_all_tags: bool

    def splits(self) -> tuple[str, ...]:
        """Return the names that `records` knows, for errors that list them."""

    def records(self, split: str, *, with_masks: bool, need_masks: bool = False) -> Sequence[Record]:
        """Return the images of a split in their order, `with_masks` with the masks that do not come as files.

        `need_masks` makes an error of such a mask that cannot be had.
        """

    def default_mask_dir(self) -> Path | None:
        """Return the folder of the masks that come as files; None if none do."""


@dataclass(frozen=True, eq=False)
class PackedStrings:
    """N byte strings end to end in one array.

    Reading a Python object changes its reference count, so forked workers copy its pages. They share an array.

    Attributes:
        data: all strings, (bytes,) uint8.
        ends: (N + 1,) int64; string i is `data[ends[i] : ends[i + 1]]`.
        origin: file and range of its strings if the arrays are mapped from one; pickled instead of the arrays.
    """

    data: npt.NDArray[np.uint8]
    ends: npt.NDArray[np.int64]
    origin: tuple[Path, int, int] | None = None

    @classmethod
    def pack(cls, strings: Sequence[bytes]) -> PackedStrings:
        """Copy strings into one array."""
        ends = np.fromiter(itertools.accumulate(map(len, strings), initial=0), dtype=np.int64)
        return cls(np.frombuffer(b"".join(strings), dtype=np.uint8), ends)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def __iter__(self) -> Iterator[bytes]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, row: int) -> bytes:
        return self.data[self.ends[row] : self.ends[row + 1]].tobytes()

    def part(self, path: Path, start: int, stop: int) -> PackedStrings:
        """Strings `start` to `stop` of those mapped from `path`."""
        return PackedStrings(self.data, self.ends[start : stop + 1], (path, start, stop))

    def __reduce__(self) -> Any:
        return (PackedStrings, (self.data, self.ends)) if self.origin is None else (_reopen, self.origin)


_MAGIC = b"RCAINDEX"
_BLOCK = 1 << 20  # bytes
_START = struct.Struct("<8sIIQ")  # magic, CRC-32 of key and content, number of images, number of strings


@dataclass(frozen=True, eq=False)
class RecordTable(Sequence[Record]):
    """Records that are decoded when they are asked for.

    Attributes:
        heads: of each image, JSON of id, image file, tags, mask and saliency map. A mask is a file, or height, width
            and source of annotated objects.
        shapes: the annotated objects of each image; None without any.
        rows: which rows belong to the table, in this order; None for all.

    Example:
        >>> table = RecordTable.of([Record("a", Path("a.jpg"), tags=(0,)), Record("b", Path("b.jpg"))])
        >>> table.take(table.tag_counts < 0).image_ids
        ['b']
    """

    heads: PackedStrings
    shapes: PackedStrings | None = None
    rows: npt.NDArray[np.int32] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordTable:
        """Pack records; a table is returned as it is."""
        if isinstance(records, RecordTable):
            return records
        heads, shapes = [], []
        for record in records:
            mask: Any = record.mask
            shapes.append(mask.packed if isinstance(mask, CocoShapes) else b"")
            mask = [mask.height, mask.width, mask.where] if isinstance(mask, CocoShapes) else _text(mask)
            heads.append(_head(record, mask))
        return cls(PackedStrings.pack(heads), PackedStrings.pack(shapes) if any(shapes) else None)

    @classmethod
    def read(cls, path: Path, *, key: str) -> RecordTable:
        """Map a file of `write` into memory, which all processes share.

        Raises:
            OSError: no such file, or it cannot be read.
            ValueError: not such a file, damaged, or written with another key.
        """
        count, checksum, strings = _map(path)
        if checksum != _checksum(key, count, strings):
            raise ValueError("it is damaged or belongs to other sources")
        shapes = strings.part(path, count, len(strings)) if len(strings) > count else None
        return cls(strings.part(path, 0, count), shapes)

    def write(self, path: Path, *, key: str) -> None:
        """Write the records to a file atomically; `read` has to ask for the same key."""
        strings = PackedStrings.pack([*self.heads, *(self.shapes or ())])
        checksum = _checksum(key, len(self.heads), strings)

        def write(file: IO[bytes]) -> None:
            file.write(_START.pack(_MAGIC, checksum, len(self.heads), len(strings)))
            file.write(strings.ends.data)
            file.write(strings.data.data)

        write_atomically(path, write)

    @staticmethod
    def write_each(path: Path, records: Iterable[Record], *, key: Callable[[], str]) -> None:
        """Write records without annotated objects to a file as `write` does, one by one.

        Args:
            path: the file.
            records: any number of them; 8 bytes of each are held in memory.
            key: asked when all are read.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        ends = array.array("q", [0])
        with tempfile.TemporaryFile(dir=path.parent) as heads:
            for record in records:
                ends.append(ends[-1] + heads.write(_head(record, _text(_file(record.mask)))))
            ends_of = np.frombuffer(ends, dtype=np.int64)
            checksum = zlib.crc32(ends_of.data, _first_checksum(key(), len(ends) - 1, len(ends) - 1))
            heads.seek(0)
            while block := heads.read(_BLOCK):
                checksum = zlib.crc32(block, checksum)
            heads.seek(0)

            def write(file: IO[bytes]) -> None:
                file.write(_START.pack(_MAGIC, checksum, len(ends) - 1, len(ends) - 1))
                file.write(ends_of.data)
                shutil.copyfileobj(heads, file, _BLOCK)

            write_atomically(path, write)

    def __len__(self) -> int:
        return len(self.heads) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        return self._record(self._all_rows()[index])

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, self._all_rows())

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> RecordTable:
        """Select records by their numbers or by a mask; the packed strings are shared."""
        rows = (np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen).astype(np.int32)
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def with_mask_files(self, files: Mapping[str, Path]) -> RecordTable:
        """Replace all masks by mask files, given by image id."""
        return self._with_files(3, files)

    def with_saliency(self, files: Mapping[str, Path]) -> RecordTable:
        """Replace all saliency maps by these, given by image id."""
        return self._with_files(4, files)

    def find(self, image_id: str) -> int | None:
        """Number of the record of an image, of a table in the order of `sort_key`; None without one."""
        wanted = sort_key(image_id)
        row = bisect.bisect_left(range(len(self)), wanted, key=lambda row: sort_key(self.image_id(row)))
        return row if row < len(self) and self.image_id(row) == image_id else None

    def image_id(self, row: int) -> str:
        """Image id of a record."""
        image_id: str = json.loads(self.heads[self._all_rows()[row]])[0]
        return image_id

    def iterate_ids(self) -> Iterator[str]:
        """The image id of each record, one by one."""
        return (head[0] for head in self._heads())

    @property
    def image_ids(self) -> list[str]:
        """The image id of each record."""
        return list(self.iterate_ids())

    @property
    def tag_counts(self) -> npt.NDArray[np.int64]:
        """How many tags each record has, -1 where they are unknown; (len,)."""
        counts = (-1 if head[2] is None else len(head[2]) for head in self._heads())
        return np.fromiter(counts, dtype=np.int64, count=len(self))

    @property
    def has_mask(self) -> npt.NDArray[np.bool_]:
        """Whether each record has a mask, (len,)."""
        return np.fromiter((head[3] is not None for head in self._heads()), dtype=np.bool_, count=len(self))

    @property
    def has_saliency(self) -> npt.NDArray[np.bool_]:
        """Whether each record has a saliency map, (len,)."""
        return np.fromiter((head[4] is not None for head in self._heads()), dtype=np.bool_, count=len(self))

    def _all_rows(self) -> Any:
        return range(len(self.heads)) if self.rows is None else self.rows

    def _heads(self) -> Iterator[list[Any]]:
        return (json.loads(self.heads[row]) for row in self._all_rows())

    def _record(self, row: int) -> Record:
        image_id, image, tags, mask, saliency = json.loads(self.heads[row])
        if isinstance(mask, list) and self.shapes is not None:
            height, width, where = mask
            mask = CocoShapes(height=height, width=width, where=where, packed=self.shapes[row])
        elif mask is not None:
            mask = Path(mask)
        known = None if tags is None else tuple(tags)
        return Record(image_id, Path(image), known, mask, None if saliency is None else Path(saliency))

    def _with_files(self, place: int, files: Mapping[str, Path]) -> RecordTable:
        heads = [json.loads(head) for head in self.heads]
        for head in heads:
            head[place] = _text(files.get(head[0]))
        return replace(self, heads=PackedStrings.pack([_encode(head) for head in heads]))


def sort_key(image_id: str) -> bytes:
    """Order of ids in a table that is searched: that of their letters, which is the order of strings in Python.

    Only names that are not UTF-8 may come elsewhere.
    """
    return image_id.encode("utf-8", "surrogateescape")


def _head(record: Record, mask: Any) -> bytes:
    return _encode([record.image_id, str(record.image), record.tags, mask, _text(record.saliency)])


def _file(mask: Path | CocoShapes | None) -> Path | None:
    if isinstance(mask, CocoShapes):
        raise DataError(f"{mask.where}: annotated objects are written with all records at once, by `write`")
    return mask


def _encode(head: list[Any]) -> bytes:
    return json.dumps(head, separators=(",", ":")).encode()  # ASCII, also of names that are not UTF-8


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _map(path: Path) -> tuple[int, int, PackedStrings]:
    """Number of images, checksum and strings of a file."""
    content = np.asarray(np.memmap(path, dtype=np.uint8, mode="r"))
    if len(content) < _START.size or content[: len(_MAGIC)].tobytes() != _MAGIC:
        raise ValueError("it is a file of another kind")
    _, checksum, count, number = _START.unpack_from(content.data)
    data = _START.size + 8 * (number + 1)
    return count, checksum, PackedStrings(content[data:], content[_START.size : data].view(np.int64))


def _checksum(key: str, count: int, strings: PackedStrings) -> int:
    return zlib.crc32(strings.data.data, zlib.crc32(strings.ends.data, _first_checksum(key, count, len(strings))))


def _first_checksum(key: str, count: int, strings: int) -> int:
    return zlib.crc32(key.encode() + _START.pack(_MAGIC, 0, count, strings))


def _reopen(path: Path, start: int, stop: int) -> PackedStrings:
    """Map strings again in a worker of the process that has checked the file."""
    try:
        return _map(path)[2].part(path, start, stop)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be opened again ({error}); start the run anew to rebuild it") from error
