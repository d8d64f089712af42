"""What is known of each image of a split before its pixels are read, in flat arrays that loader processes share."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol, TypeVar, overload

import numpy as np
import numpy.typing as npt

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.tag_files import Tags


@dataclass(frozen=True)
class Record:
    """One image of a split.

    Attributes:
        image_id: name of the image file without its ending.
        image: the image file.
        tags: class indices present; empty if none of the classes, None if nobody said.
        mask: index mask file or annotated objects to draw it from; None without a mask.
        saliency: saliency map file; None without one.
    """

    image_id: str
    image: Path
    tags: Tags | None = None
    mask: Path | CocoShapes | None = None
    saliency: Path | None = None


class Source(Protocol):
    """A data set on disk: gives the records of a split."""

    root: Path

    def records(self, split: str, *, with_masks: bool) -> Sequence[Record]:
        """Return the images of a split, sorted as the split lists them.

        Args:
            split: name of the split.
            with_masks: whether masks that the data set itself brings are wanted.
        """
        ...

    def default_mask_dir(self) -> Path | None:
        """Return the folder of mask files where none is given; None if masks do not come as files."""
        ...


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


_Number = TypeVar("_Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class RecordTable(Sequence[Record]):
    """Records that are made when they are asked for.

    Attributes:
        names: of the images.
        images: their files.
        tags: their classes.
        masks: index mask files; None without any.
        shapes: annotated objects to draw masks from, which come before files; None without any.
        saliency: saliency maps; None without any.
        rows: which rows of the columns belong to the table, in this order; None for all.

    Example:
        >>> table = RecordTable.of([Record("a", Path("a.jpg"), tags=(0,)), Record("b", Path("b.jpg"))])
        >>> table.take(table.tag_counts < 0).image_ids
        ['b']
    """

    names: Strings
    images: Paths
    tags: TagLists
    masks: Paths | None = None
    shapes: Shapes | None = None
    saliency: Paths | None = None
    rows: npt.NDArray[np.int32] | None = None

    @classmethod
    def of(cls, records: Iterable[Record]) -> RecordTable:
        """Lay records out as a table; one that is a table already is returned as it is."""
        if isinstance(records, RecordTable):
            return records
        records = list(records)
        files = [record.mask if isinstance(record.mask, Path) else None for record in records]
        shapes = [record.mask if isinstance(record.mask, CocoShapes) else None for record in records]
        return cls(
            names=Strings.pack_text(record.image_id for record in records),
            images=Paths.pack(record.image for record in records),
            tags=TagLists.pack([record.tags for record in records]),
            masks=Paths.pack(files) if any(files) else None,
            shapes=Shapes.pack(shapes) if any(shape is not None for shape in shapes) else None,
            saliency=Paths.pack(record.saliency for record in records) if any(r.saliency for r in records) else None,
        )

    def __len__(self) -> int:
        return len(self.tags.known) if self.rows is None else len(self.rows)

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> RecordTable: ...
    def __getitem__(self, index: int | slice) -> Record | RecordTable:
        if isinstance(index, slice):
            return self.take(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"record {index} of {len(self)}")
        index %= len(self)
        return self._record(index if self.rows is None else int(self.rows[index]))

    def __iter__(self) -> Iterator[Record]:
        return map(self._record, range(len(self)) if self.rows is None else self.rows.tolist())

    def take(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.int64]) -> RecordTable:
        """Some of the records, by their numbers or by a mark for each; the columns are shared."""
        rows = (np.flatnonzero(chosen) if chosen.dtype == np.bool_ else chosen).astype(np.int32)
        return replace(self, rows=rows if self.rows is None else self.rows[rows])

    def with_mask_files(self, files: Mapping[str, Path]) -> RecordTable:
        """The same with mask files by image id instead of the masks it has."""
        return replace(self, masks=self._by_name(files), shapes=None)

    def with_saliency(self, files: Mapping[str, Path]) -> RecordTable:
        """The same with saliency maps by image id."""
        return replace(self, saliency=self._by_name(files))

    @property
    def image_ids(self) -> list[str]:
        """The image id of each record."""
        names = self.names.texts()
        return names if self.rows is None else [names[row] for row in self.rows.tolist()]

    @property
    def tag_counts(self) -> npt.NDArray[np.int64]:
        """How many tags each record has, -1 where they are unknown; (len,)."""
        return self._chosen(np.where(self.tags.known, np.diff(self.tags.ends), -1))

    @property
    def has_mask(self) -> npt.NDArray[np.bool_]:
        """Whether each record has a mask, (len,)."""
        has = np.zeros(len(self.tags.known), dtype=np.bool_)
        for column in (self.masks, self.shapes):
            if column is not None:
                has |= column.present
        return self._chosen(has)

    @property
    def has_saliency(self) -> npt.NDArray[np.bool_]:
        """Whether each record has a saliency map, (len,)."""
        none = np.zeros(len(self.tags.known), dtype=np.bool_)
        return self._chosen(none if self.saliency is None else self.saliency.present)

    def _record(self, row: int) -> Record:
        image = self.images[row]
        assert image is not None  # only masks and saliency maps may be missing
        mask: Path | CocoShapes | None = None if self.shapes is None else self.shapes[row]
        if mask is None and self.masks is not None:
            mask = self.masks[row]
        saliency = None if self.saliency is None else self.saliency[row]
        return Record(self.names.text(row), image, self.tags[row], mask, saliency)

    def _by_name(self, files: Mapping[str, Path]) -> Paths:
        return Paths.pack(files.get(name) for name in self.names.texts())

    def _chosen(self, values: npt.NDArray[_Number]) -> npt.NDArray[_Number]:
        return values if self.rows is None else values[self.rows]
