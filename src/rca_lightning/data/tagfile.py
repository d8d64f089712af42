"""Tag files: image-level labels written by hand or by a script."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path

from rca_lightning.data.classes import ClassIndex
from rca_lightning.data.listing import IMAGE_EXTENSIONS, check_image_id
from rca_lightning.data.textfile import read_lines
from rca_lightning.errors import DataError

Tags = tuple[int, ...]
"""Class indices present in an image, ascending, each once."""


def read_tag_file(path: Path, classes: ClassIndex) -> dict[str, Tags]:
    r"""Read which classes each image shows.

    Two forms are understood. A name ending in `.csv` means a table with the header `image,tags`
    and the tags of an image separated by `;`. Any other file is text: an id, then its tags, all
    separated by white space; names that contain spaces need the CSV form. In both, an image is
    named by its file name with or without the ending, and no tag after it means that it shows
    none of the classes.

    Args:
        path: the file.
        classes: the known classes.

    Returns:
        The class indices of every image in the file.

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
    lines = read_lines(path, what="tags_file")
    rows = _csv_rows(path, lines) if path.suffix.lower() == ".csv" else _text_rows(lines)
    found: dict[str, Tags] = {}
    for number, image, names in rows:
        where = f"{path}, line {number}"
        image_id = check_image_id(_without_ending(image), where=where)
        if image_id in found:
            raise DataError(f"{where}: image {image_id!r} has tags in an earlier line already; keep one of the lines")
        found[image_id] = tuple(sorted({classes.lookup(name, where=where) for name in names}))
    return found


def _text_rows(lines: Iterable[tuple[int, str]]) -> Iterator[tuple[int, str, list[str]]]:
    for number, line in lines:
        image, *names = line.split()
        yield number, image, names


def _csv_rows(path: Path, lines: list[tuple[int, str]]) -> Iterator[tuple[int, str, list[str]]]:
    header = lines[0][1] if lines else ""
    if [name.strip() for name in header.split(",")] != ["image", "tags"]:
        raise DataError(f"{path}: the header is {header!r}; the first line has to be 'image,tags'")
    for number, line in lines[1:]:
        cells = _cells(line, where=f"{path}, line {number}")
        if len(cells) != 2:
            raise DataError(
                f"{path}, line {number}: {len(cells)} columns instead of 2 (image,tags); separate the tags by ';'"
            )
        yield number, cells[0].strip(), [name.strip() for name in cells[1].split(";") if name.strip()]


def _cells(line: str, *, where: str) -> list[str]:
    try:
        return next(csv.reader([line]))
    except csv.Error as error:
        raise DataError(f"{where}: no line of a CSV file ({error}); correct it") from error


def _without_ending(image: str) -> str:
    stem, dot, ending = image.rpartition(".")
    return stem if dot and f".{ending.lower()}" in IMAGE_EXTENSIONS else image
