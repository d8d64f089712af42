"""The records of a split in flat arrays, which loader processes share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, overload

import numpy as np
import numpy.typing as npt

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.columns import Paths, Shapes, Strings, TagLists
from rca_lightning.data.records import Record

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
