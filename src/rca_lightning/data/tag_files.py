"""Reads the text files that describe a data set: lists of image ids and of tags."""

from __future__ import annotations

import csv
import io
import logging
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import IO

from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.data.classes import ClassIndex
from rca_lightning.errors import DataError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.io.listing import IMAGE_EXTENSIONS, check_image_id, first_few, iterate_lines, read_lines

_warn = rank_zero_only(logging.getLogger(__name__).warning)

_SBD_LINE = re.compile(r"/?JPEGImages/(?P<id>[^/\\\s]+)\.jpg(\s+/?SegmentationClass\w*/(?P<mask>[^/\\\s]+)\.png)?")


def read_id_list(path: Path, *, what: str = "split_files") -> list[str]:
    """Read the image ids of a split, in the order of the file.

    A line is an id (the file name without ending), or a pair of paths as lists of the augmented
    VOC training set have them: `/JPEGImages/2007_000032.jpg /SegmentationClassAug/2007_000032.png`.

    Args:
        path: the text file.
        what: the argument the file came by, for the error.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: no id at all, an id twice, or a line that is not one plain id.
    """
    ids: dict[str, int] = {}
    for number, line in read_lines(path, what=what):
        where, pair = f"{path}, line {number}", _SBD_LINE.fullmatch(line)
        if pair and pair["mask"] not in {None, pair["id"]}:
            raise DataError(
                f"{where}: image {pair['id']!r} is paired with the mask of {pair['mask']!r}; correct the line"
            )
        image_id = check_image_id(pair["id"] if pair else line, where=where)
        if image_id in ids:
            raise DataError(f"{where}: id {image_id!r} stands in line {ids[image_id]} already; remove one of them")
        ids[image_id] = number
    if not ids:
        raise DataError(f"{path}: no image id in it; write one id a line")
    return list(ids)


def require_listed(ids: Collection[str], images: Collection[str], *, listed_in: Path, folder: Path) -> None:
    """Raise `DataError` if a file lists ids of images that are not in their folder."""
    absent = [image_id for image_id in ids if image_id not in images]
    if absent:
        raise not_listed(absent, of=len(ids), listed_in=listed_in, folder=folder)


def not_listed(absent: Collection[str], *, of: int, listed_in: Path, folder: Path) -> DataError:
    """Error of a file that lists ids of images that are not in their folder."""
    return DataError(
        f"{listed_in}: {len(absent)} of its {of} images are not in {folder}: {first_few(absent)}; "
        "add them or take them out of the file"
    )


def warn_unlisted(tags: Collection[str], images: Collection[str], *, tags_file: str, where: str) -> None:
    """Warn of tags that a file has for images that are not there, as ids of another form would be."""
    absent = [image_id for image_id in tags if image_id not in images]
    if absent:
        _warn(
            "tags_file=%r: %d of its %d images are not in %s, so their tags are not used: %s",
            *(tags_file, len(absent), len(tags), where, first_few(absent)),
        )


Tags = tuple[int, ...]
"""Class indices present in an image, ascending, each once."""


def read_tag_file(path: Path, classes: ClassIndex) -> dict[str, Tags]:
    r"""Read which classes each image shows.

    Two forms are understood. A name ending in `.csv` means a table with the header `image,tags`
    and the tags of an image separated by `;`, or the same with `;` between the columns, as Excel
    writes it in some countries. Any other file is text: an id, then its tags, all
    separated by white space; names that contain spaces need the CSV form. In both, an image is
    named by its file name with or without the ending, and no tag after it means that it shows
    none of the classes.

    Args:
        path: the file.
        classes: the known classes.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: wrong header, unknown tag, an image twice, or an id with a path in it.

    Example:
        >>> from pathlib import Path; import tempfile
        >>> file = Path(tempfile.mkdtemp()) / "tags.csv"
        >>> _ = file.write_text("image,tags\na.jpg,cat;dog\nb.jpg,\n")
        >>> read_tag_file(file, ClassIndex(["cat", "dog"]))
        {'a': (0, 1), 'b': ()}
    """
    return {
        image_id: tuple(sorted({classes.lookup(name, where=where) for name in names}))
        for where, image_id, names in read_tag_names(path)
    }


def read_tag_names(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Read the tags of each image as they are written, in the forms of `read_tag_file`.

    Yields:
        File and line, image id, and the names of its tags.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: wrong header, an image twice, or an id with a path in it.
    """
    seen: set[str] = set()
    for where, image_id, names in iterate_tag_names(path):
        if image_id in seen:
            raise tagged_twice(image_id, where=where)
        seen.add(image_id)
        yield where, image_id, names


def tagged_twice(image_id: str, *, where: str) -> DataError:
    """Error of an image that a tag file lists twice."""
    return DataError(f"{where}: image {image_id!r} has tags in an earlier line already; keep one of the lines")


def iterate_tag_names(path: Path) -> Iterator[tuple[str, str, list[str]]]:
    """Read the tags of each image as `read_tag_names` does, but for an image that stands there twice.

    That takes a memory that does not grow with the file; whoever keeps the tags finds those that come twice.
    """
    lines = iterate_lines(path, what="tags_file")
    is_csv = path.suffix.lower() == ".csv"
    rows = _csv_rows(path, lines) if is_csv else ((number, line.split()) for number, line in lines)
    for number, (image, *names) in rows:
        where = f"{path}, line {number}"
        stem, dot, ending = image.rpartition(".")
        image_id = check_image_id(stem if dot and f".{ending.lower()}" in IMAGE_EXTENSIONS else image, where=where)
        yield where, image_id, names


def _csv_rows(path: Path, lines: Iterator[tuple[int, str]]) -> Iterator[tuple[int, list[str]]]:
    """Line number, and image and tags, of each row."""
    first = next(lines, None)
    header = "" if first is None else first[1]
    where = str(path) if first is None else f"{path}, line {first[0]}"
    delimiter = next((sign for sign in ",;" if _cells(header, sign, where) == ["image", "tags"]), None)
    if delimiter is None:
        raise DataError(f"{path}: the header is {header!r}; the first line has to be 'image,tags'")
    for number, line in lines:
        where = f"{path}, line {number}"
        image, *cells = _cells(line, delimiter, where)
        if not cells or (delimiter == "," and len(cells) > 1):
            found = f"{1 + len(cells)} columns instead of 2 (image{delimiter}tags)"
            raise DataError(f"{where}: {found}; separate the tags by ';'")
        tags = (tag.strip() for cell in cells for tag in cell.split(";"))
        yield number, [image, *filter(None, tags)]


def _cells(line: str, delimiter: str, where: str) -> list[str]:
    """The cells of a line; empty ones after the second, with which tables fill up their lines, are left out."""
    try:
        cells = [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error as error:
        raise DataError(f"{where}: no line of a CSV file ({error}); correct it") from error
    while len(cells) > 2 and not cells[-1]:
        cells.pop()
    return cells


def write_tag_file(path: Path, rows: Iterable[tuple[str, Tags]], classes: ClassIndex) -> None:
    """Write a CSV that `read_tag_file` reads, row by row, whole or not at all.

    Args:
        path: the file, with the ending `.csv`.
        rows: image ids and class indices.
        classes: whose names are written.
    """

    def write(file: IO[bytes]) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(["image", "tags"])
        writer.writerows((image_id, ";".join(classes.names[index] for index in tags)) for image_id, tags in rows)
        text.flush()
        text.detach()

    write_atomically(path, write)
