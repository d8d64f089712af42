"""List of tagged photographs on disk: sorted by an SQLite database while it is made, then read by memory map."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import sqlite3
from collections.abc import Callable, ItemsView, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from rca_lightning.data.records import Record, RecordTable, sort_key
from rca_lightning.data.tag_files import Tags
from rca_lightning.errors import DataError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.io.listing import shared_id

_FORMAT = 1
_TABLE, _FACTS = "photographs.index", "photographs.json"
_PAGES = 24 * 1024  # KiB of the database that are kept in memory
_T = TypeVar("_T")


@dataclass(frozen=True)
class Facts:
    """What is known of all photographs of a list together.

    Attributes:
        origin: where the tags come from.
        described: the same in words.
        class_names: in the order of the mask values.
        images: number of photographs.
        known: of these, those whose tags are known.
        tagged: of these, those with at least one tag.
        digest: of all ids and tags.
        digest_of_tagged: of those with at least one tag.
        stamp: of the folders and files that the list was made from; see `read_tagged_folder`.
    """

    origin: str
    described: str
    class_names: tuple[str, ...]
    images: int
    known: int
    tagged: int
    digest: str
    digest_of_tagged: str
    stamp: str


class Listing:
    """Photographs and tags as they are found, in any order, and then sorted.

    They are rows of a database without a name, which SQLite keeps in its own temporary folder (`SQLITE_TMPDIR`,
    `TMPDIR`) as far as they exceed 24 MiB, and removes when it is closed.

    Args:
        base: folder of the photographs, or of the folders that hold them.

    Example:
        >>> with Listing(Path("photographs")) as listing:
        ...     listing.add_photographs([("b", "b.jpg"), ("a", "a.jpg")])
        ...     listing.sort()
        ...     _ = listing.add_tags("a", ["dog"])
        ...     [(image_id, file.name, names) for image_id, file, names in listing]
        [('a', 'a.jpg', ['dog']), ('b', 'b.jpg', None)]
    """

    def __init__(self, base: Path) -> None:
        self._base = base
        self._database = sqlite3.connect("", isolation_level=None)
        for setting in ("journal_mode = OFF", "synchronous = OFF", "temp_store = FILE", f"cache_size = -{_PAGES}"):
            self._execute(f"PRAGMA {setting}")
        self._execute("BEGIN")  # a single transaction, which nobody else will read
        self._execute("CREATE TABLE photographs (id BLOB, folder BLOB, file BLOB)")
        self._execute("CREATE TABLE tags (id BLOB PRIMARY KEY, number INTEGER, names TEXT) WITHOUT ROWID")
        self._listed = 0

    def __enter__(self) -> Listing:
        """Return the listing."""
        return self

    def __exit__(self, *_: object) -> None:
        """Remove it."""
        self._database.close()

    def add_photographs(self, found: Iterable[tuple[str, str]], *, folder: str = "") -> None:
        """Add ids and file names of a folder, by its name in the base; the base itself has none."""
        rows = ((sort_key(image_id), os.fsencode(folder), os.fsencode(name)) for image_id, name in found)
        self._database.executemany("INSERT INTO photographs VALUES (?, ?, ?)", rows)

    def sort(self) -> None:
        """Sort the photographs.

        Raises:
            DataError: two files of a folder share an id.
        """
        self._execute("CREATE INDEX in_order ON photographs (id, folder, file)")
        for (first, folder, file), (second, of, other) in itertools.pairwise(self._rows()):
            if (first, folder) == (second, of):
                where = self._base / os.fsdecode(folder)
                raise shared_id(where, _text(first), os.fsdecode(file), os.fsdecode(other))

    def join(self, same: Callable[[Path, Path], bool]) -> None:
        """Give each photograph of several folders one id: its name, with the folder before it where others have it too.

        Args:
            same: whether two files hold one photograph, which is then listed once.

        Raises:
            DataError: a name with its folder is the name of another photograph.
        """
        self._execute("CREATE TABLE joined (id BLOB, folder BLOB, file BLOB, holders TEXT)")
        for image_id, group in itertools.groupby(self._rows(), key=lambda row: row[0]):
            rows = list(group)
            files = [self._path(folder, file) for _, folder, file in rows]
            names = [os.fsdecode(folder) for _, folder, _ in rows]
            if all(same(files[0], other) for other in files[1:]):
                self._execute("INSERT INTO joined VALUES (?, ?, ?, ?)", *rows[0], json.dumps(names))
                continue
            for name, (_, *place) in zip(names, rows, strict=True):
                own = sort_key(f"{name}_{_text(image_id)}")
                self._execute("INSERT INTO joined VALUES (?, ?, ?, ?)", own, *place, json.dumps([name]))
        self._execute("DROP TABLE photographs")
        self._execute("ALTER TABLE joined RENAME TO photographs")
        self._execute("CREATE INDEX in_order ON photographs (id, folder, file)")
        for (first, *place), (second, *other) in itertools.pairwise(self._rows()):
            if first == second:
                files = [self._path(*place), self._path(*other)]
                renamed = next((file for file in files if file.stem != _text(first)), files[1])
                raise DataError(f"{renamed}: another photograph has the name {_text(first)!r}; rename one of them")

    def holders(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        """Id of each photograph, and names of the folders that hold it, after `join`; tags may be added meanwhile."""
        rows = self._execute("SELECT id, holders FROM photographs ORDER BY id, folder, file")
        return ((_text(image_id), tuple(json.loads(names))) for image_id, names in rows)

    def add_tags(self, image_id: str, names: Sequence[str]) -> bool:
        """Add the names of the tags of a photograph; returns False where it has some already."""
        self._listed += 1
        row = (sort_key(image_id), self._listed, json.dumps(names))
        return self._execute("INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", *row).rowcount == 1

    def strangers(self) -> Iterator[str]:
        """Ids that have tags and are no photographs, in the order in which their tags came."""
        rows = self._execute(
            "SELECT id FROM tags WHERE NOT EXISTS (SELECT 1 FROM photographs WHERE photographs.id = tags.id) "
            "ORDER BY number"
        )
        return (_text(image_id) for (image_id,) in rows)

    def photographs(self) -> Iterator[tuple[str, Path]]:
        """Id and file of each photograph, sorted; tags may be added meanwhile."""
        return ((_text(image_id), self._path(folder, file)) for image_id, folder, file in self._rows())

    def __len__(self) -> int:
        """Return the number of photographs."""
        return self._number("photographs")

    @property
    def num_tagged(self) -> int:
        """How many photographs have tags, be they none of the classes."""
        return self._number("tags")

    def __iter__(self) -> Iterator[tuple[str, Path, list[str] | None]]:
        """Id, file and names of the tags of each photograph, sorted; None where they are unknown."""
        rows = self._execute(
            "SELECT photographs.id, folder, file, names FROM photographs LEFT JOIN tags ON tags.id = photographs.id "
            "ORDER BY photographs.id, folder, file"
        )
        for image_id, folder, file, names in rows:
            yield _text(image_id), self._path(folder, file), None if names is None else json.loads(names)

    def _path(self, folder: bytes, file: bytes) -> Path:
        return self._base / os.fsdecode(folder) / os.fsdecode(file)

    def _rows(self) -> sqlite3.Cursor:
        return self._execute("SELECT id, folder, file FROM photographs ORDER BY id, folder, file")

    def _number(self, table: str) -> int:
        return int(self._execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0])

    def _execute(self, statement: str, *values: Any) -> sqlite3.Cursor:
        return self._database.execute(statement, values)


def _text(image_id: bytes) -> str:
    return image_id.decode("utf-8", "surrogateescape")


class Catalogue:
    """The list of photographs of a folder, mapped from a file: ids, files and tags, in the order of the ids.

    Attributes:
        facts: of all photographs together.
        table: their records.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> records = [Record("a", Path("a.jpg"), (0,)), Record("b", Path("b.jpg"))]
        >>> catalogue = Catalogue.write(folder, records, origin="file", described="tags.csv", class_names=["dog"])
        >>> dict(catalogue.tags), "b" in catalogue.images
        ({'a': (0,)}, True)
    """

    def __init__(self, facts: Facts, table: RecordTable) -> None:
        self.facts = facts
        self.table = table

    @classmethod
    def read(cls, folder: Path) -> Catalogue | None:
        """Map the list that `write` has left in a folder; None where there is none, or it is damaged."""
        try:
            content = json.loads((folder / _FACTS).read_text(encoding="utf-8"))
            if content.pop("format") != _FORMAT:
                return None
            facts = Facts(**{**content, "class_names": tuple(content["class_names"])})
            return cls(facts, RecordTable.read(folder / _TABLE, key=facts.digest))
        except (OSError, ValueError, TypeError, KeyError):
            return None

    @classmethod
    def write(
        cls,
        folder: Path,
        records: Iterable[Record],
        *,
        origin: str,
        described: str,
        class_names: Sequence[str],
        stamp: str = "",
    ) -> Catalogue:
        """Write a list whole or not at all, a record at a time; readers of the one before are not disturbed.

        Args:
            folder: for the files.
            records: sorted by id.
            origin: see `Facts`, as for the other arguments.
            described: see there.
            class_names: see there.
            stamp: see there.

        Raises:
            OSError: from the file system, such as a full disk.
        """
        counts = {"images": 0, "known": 0, "tagged": 0}
        digest, of_tagged = hashlib.sha256(), hashlib.sha256()

        def counted() -> Iterator[Record]:
            for record in records:
                counts["images"] += 1
                line = f"{record.image_id} {record.tags}\n".encode("utf-8", "surrogatepass")
                digest.update(line)
                if record.tags is not None:
                    counts["known"] += 1
                if record.tags:
                    counts["tagged"] += 1
                    of_tagged.update(line)
                yield record

        def key() -> str:
            return digest.hexdigest()[:32]

        RecordTable.write_each(folder / _TABLE, counted(), key=key)
        facts = Facts(
            origin=origin,
            described=described,
            class_names=tuple(class_names),
            digest=key(),
            digest_of_tagged=of_tagged.hexdigest()[:32],
            stamp=stamp,
            **counts,
        )
        text = json.dumps({"format": _FORMAT, **asdict(facts)}, indent=1)
        write_atomically(folder / _FACTS, lambda file: file.write(text.encode()))
        return cls(facts, RecordTable.read(folder / _TABLE, key=facts.digest))

    @property
    def images(self) -> Mapping[str, Path]:
        """File of each photograph."""
        return _View(self.table, len(self.table), lambda record: record.image, lambda record: True)

    @property
    def tags(self) -> Mapping[str, Tags]:
        """Tags of the photographs whose tags are known."""
        return _View(self.table, self.facts.known, _tags, lambda record: record.tags is not None)


class CatalogueSource:
    """A list of photographs as a data set: the split "all", and chosen ones by other names.

    Args:
        root: folder that relative paths refer to.
        catalogue: the list.
        chosen: row numbers of further splits.
    """

    needs_all_tags = False

    def __init__(self, root: Path, catalogue: Catalogue, chosen: Mapping[str, npt.NDArray[np.int64]]) -> None:
        self.root = root
        self._table = catalogue.table
        self._chosen = chosen

    def default_mask_dir(self) -> Path | None:
        """There is none."""
        return None

    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return ("all", *self._chosen)

    def records(self, split: str, *, with_masks: bool, need_masks: bool = False) -> RecordTable:
        """Return the images of a split, without masks."""
        return self._table.take(self._chosen[split]) if split in self._chosen else self._table


def _tags(record: Record) -> Tags:
    assert record.tags is not None
    return record.tags


class _View(Mapping[str, _T]):
    """Something of each photograph by id; what is asked for is read, and nothing kept.

    Args:
        table: sorted by id.
        length: how many photographs have it.
        value: it, of a record.
        has: whether a record has it.
    """

    def __init__(
        self, table: RecordTable, length: int, value: Callable[[Record], _T], has: Callable[[Record], bool]
    ) -> None:
        self._table, self._length, self._value, self._has = table, length, value, has

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[str]:
        return (image_id for image_id, _ in self.items())

    def __getitem__(self, image_id: str) -> _T:
        row = self._table.find(image_id)
        if row is None or not self._has(record := self._table[row]):
            raise KeyError(image_id)
        return self._value(record)

    def items(self) -> ItemsView[str, _T]:
        return _Items(self)

    def pairs(self) -> Iterator[tuple[str, _T]]:
        """Id and value, from the first to the last photograph."""
        return ((record.image_id, self._value(record)) for record in self._table if self._has(record))


class _Items(ItemsView[str, _T]):
    """Pairs that are read one after the other, where the pairs of any mapping would be searched for one by one."""

    _mapping: _View[_T]

    def __iter__(self) -> Iterator[tuple[str, _T]]:
        return self._mapping.pairs()
