"""Reads the categories of a COCO instances file: its classes, and the mask value of each category id."""

from __future__ import annotations

import functools
import json
import logging
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.data.classes import COCO_CATEGORIES, reserved_mask_value
from rca_lightning.errors import DataError, RCAError

_WINDOW = 1 << 20  # bytes at either end of a file in which its categories are looked for


@dataclass(frozen=True)
class Categories:
    """The classes of an instances file, in the order of their category ids.

    Attributes:
        ids: category id of each of the L classes, ascending; that of class index c is `ids[c]`.
        names: the L class names.
        reserved: pairs of a category id that is no class and the mask value it stands for, such as that of labelme's
            `_background_`; ascending.
    """

    ids: tuple[int, ...]
    names: tuple[str, ...]
    reserved: tuple[tuple[int, int], ...] = ()

    @classmethod
    def parse(cls, entries: Any, path: Path) -> Categories:
        """Check the list `categories` of an instances file.

        Raises:
            DataError: no category, one without a whole number as `id` or text as `name`, or an id or a name twice.
        """
        if not isinstance(entries, list) or not entries:
            remedy = "list id and name of each under 'categories'"
            raise DataError(f"{path}: not a COCO instances file (no categories, so ids have no names); {remedy}")
        names: dict[int, str] = {}
        for entry in entries:
            number, name = (entry.get("id"), entry.get("name")) if isinstance(entry, dict) else (None, None)
            if type(number) is not int or not isinstance(name, str) or not name.strip():
                raise DataError(f"{path}: category {entry!r}; give it a whole number as 'id' and a text as 'name'")
            name = unicodedata.normalize("NFC", name.strip())
            if number in names or name in names.values():
                raise DataError(f"{path}: the id or the name of category {number} {name!r} stands there twice")
            names[number] = name
        values = {number: reserved_mask_value(name) for number, name in sorted(names.items())}
        classes = tuple(number for number, value in values.items() if value is None)
        reserved = tuple((number, value) for number, value in values.items() if value is not None)
        if not classes:
            raise DataError(f"{path}: none of its categories is a class ({', '.join(names.values())}); add the classes")
        for number, value in reserved:
            _note_reserved(path, number, names[number], value)
        return cls(classes, tuple(names[number] for number in classes), reserved)

    def difference(self, other: Categories) -> str | None:
        """The first category id under which `other` has another name; None if all are equal."""
        first, second = self._by_id(), other._by_id()
        for number in sorted(first.keys() | second.keys()):
            if first.get(number) != second.get(number):
                return f"category {number} is {first.get(number)!r} in the one and {second.get(number)!r} in the other"
        return None

    def _by_id(self) -> dict[int, str | int]:
        return dict(self.reserved) | dict(zip(self.ids, self.names, strict=True))


COCO = Categories(tuple(COCO_CATEGORIES), tuple(COCO_CATEGORIES.values()))
"""The 80 categories of COCO."""


def read_categories(path: Path) -> Categories:
    """Read the categories of an instances file; of a large one the ends only, where they nearly always stand.

    Raises:
        DataError: not an instances file, or see `Categories.parse`.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(0)
            start = file.read(_WINDOW)
            file.seek(max(0, size - _WINDOW))
            end = file.read()
        entries = _at_start(start.decode(errors="replace"))
        if entries is None:
            entries = _at_end(end.decode(errors="replace"))
        if entries is None:
            entries = json.loads(path.read_bytes()).get("categories")
        return Categories.parse(entries, path)
    except RCAError:
        raise
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); allow it or give another file") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise DataError(f"{path}: not a COCO instances file ({type(error).__name__}: {error})") from error


def _at_start(text: str) -> Any:
    opening = re.match(r"\ufeff?\s*\{\s*", text)
    members = _members(text, opening.end()) if opening else iter(())
    return next((value for key, value, _ in members if key == "categories"), None)


def _at_end(text: str) -> Any:
    # Members that go on to the brace which ends the file are members of the outermost object.
    starts = [match.start() for match in re.finditer(r'"categories"\s*:\s*\[', text)]
    members = list(_members(text, starts[-1])) if starts else []
    return members[0][1] if members and re.fullmatch(r"\s*\}\s*", text[members[-1][2] :]) else None


_DECODER = json.JSONDecoder()
_COLON, _COMMA = re.compile(r"\s*:\s*"), re.compile(r"\s*,\s*")


def _members(text: str, position: int) -> Iterator[tuple[Any, Any, int]]:
    """Key, value and end of each member of an object, from the key at `position` to its last or a cut."""
    try:
        while True:
            key, position = _DECODER.raw_decode(text, position)
            if (colon := _COLON.match(text, position)) is None:
                return
            value, position = _DECODER.raw_decode(text, colon.end())
            yield key, value, position
            if (comma := _COMMA.match(text, position)) is None:
                return
            position = comma.end()
    except (ValueError, RecursionError):
        return


@functools.cache
def _note_reserved(path: Path, number: int, name: str, value: int) -> None:
    meaning = "background" if value == 0 else "void"
    _note("%s: category %d %r is no class; its objects are %s (mask value %d)", path, number, name, meaning, value)


_note = rank_zero_only(logging.getLogger(__name__).info)
