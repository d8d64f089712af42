"""Lists the files of a data set (one listing a folder, no call for each file) and reads its text lists."""

from __future__ import annotations

import functools
import logging
import os
import stat
import unicodedata
from collections.abc import Collection, Iterable
from pathlib import Path

from rca_lightning.distributed import world_size_and_rank
from rca_lightning.errors import DataError, DatasetNotFoundError

_log = logging.getLogger(__name__)

IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})
"""File endings taken for images, in lower case."""

_OTHER_IMAGES = frozenset(
    {
        *(".gif", ".heic", ".heif", ".avif", ".jfif", ".jpe", ".jp2", ".j2k", ".jxl", ".tga", ".psd", ".svg", ".exr"),
        *(".ppm", ".pgm", ".pbm", ".pnm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw", ".dcm"),
    }
)
"""Endings of images that are not read: files that have one are counted in a warning."""


def check_image_id(image_id: str, *, where: str) -> str:
    """Return an id that was read at a file and line, if it is safe as a file name without its ending.

    It is returned in the Unicode normal form NFC: macOS and some archives write an accented letter as two signs, lists
    that people type as one.

    Raises:
        DataError: empty, `.`, `..`, or holds a path separator, a control character or what no file name can hold: such
            an id could lead out of the folder of the data set.
    """
    try:
        os.fsencode(image_id)
        plain = image_id not in {"", ".", ".."} and not any(sign in "/\\" or ord(sign) < 32 for sign in image_id)
    except UnicodeEncodeError:
        plain = False
    if not plain:
        raise DataError(
            f"{where}: image id {image_id!r} is not a plain file name; "
            "write the name of the file without folder and ending, such as 2007_000032"
        )
    return unicodedata.normalize("NFC", image_id)


def locate(value: str | Path, root: Path) -> Path:
    """Resolve a path given as an argument: absolute, else inside `root`, else from the working folder."""
    path = Path(value).expanduser()
    if path.is_absolute():
        return path
    inside = root / path
    return inside if inside.exists() or not path.exists() else path


def require_folder(path: Path, *, what: str, remedy: str) -> Path:
    """Return `path` if it is a folder, else raise `DatasetNotFoundError` naming argument, value and remedy."""
    if not path.is_dir():
        raise DatasetNotFoundError(f"{what}={str(path)!r}: no such folder; {remedy}")
    return path


def require_regular_file(path: Path, *, remedy: str) -> Path:
    """Return `path` if it is a file, or a link to one: reading a pipe or a device might never end.

    Raises:
        DatasetNotFoundError: there is nothing.
        DataError: there is a folder, a pipe or a device, or it may not be looked at.
    """
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        raise DatasetNotFoundError(f"{path}: no such file; {remedy}") from error
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); {remedy}") from error
    if not stat.S_ISREG(mode):
        raise DataError(f"{path}: not a regular file but a folder, pipe or device; {remedy}")
    return path


def list_by_stem(folder: Path, extensions: Collection[str]) -> dict[str, Path]:
    """List the files of a folder with one of these endings (lower case) by name without ending, sorted.

    Subfolders and hidden files are left out.

    Raises:
        DataError: two files share a name and differ in the ending only, or a name is no usable id.
    """
    files: dict[str, Path] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208 - see below
        stem, extension = os.path.splitext(name)  # noqa: PTH122 - ten times faster than Path on 118,000 names
        if extension.lower() not in extensions or name.startswith("."):
            continue
        image_id = check_image_id(stem, where=str(folder))
        if image_id in files:
            other = files[image_id].name
            raise DataError(f"{folder}: {other} and {name} would share the id {image_id!r}; rename one of them")
        files[image_id] = folder / name
    return files


def list_images(folder: Path, extensions: Collection[str] = IMAGE_EXTENSIONS) -> dict[str, Path]:
    """List images as `list_by_stem`, and warn of files that are images but have another ending."""
    others = (IMAGE_EXTENSIONS | _OTHER_IMAGES).difference(extensions)
    names = os.listdir(folder)  # noqa: PTH208 - names of 118,000 files, not paths
    unread = [name for name in names if os.path.splitext(name)[1].lower() in others and not name.startswith(".")]  # noqa: PTH122
    if unread:
        _warn_once(
            f"{folder}: left out, for only {', '.join(sorted(extensions))} are read here: {len(unread)} images, such "
            f"as {min(unread)}; convert them"
        )
    return list_by_stem(folder, extensions)


@functools.cache
def _warn_once(message: str) -> None:
    if world_size_and_rank()[1] == 0:
        _log.warning("%s", message)


def first_few(names: Iterable[str], *, limit: int = 3) -> str:
    """Join the first names of a list, with the number of all: `a, b, c, ... (12 in all)`."""
    listed = list(names)
    return ", ".join(listed[:limit]) + (f", ... ({len(listed)} in all)" if len(listed) > limit else "")


def read_lines(path: Path, *, what: str) -> list[tuple[int, str]]:
    """Read the non-empty lines of a UTF-8 text file as pairs of number (from 1) and stripped line.

    A byte order mark and Windows line ends are accepted, and the text is brought to the normal form NFC; errors name
    the argument `what` that gave the file.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: the file is not UTF-8 text, or may not be read.
    """
    if not path.is_file():
        raise DatasetNotFoundError(f"{what}={str(path)!r}: no such file; create it or give the path of yours")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start}); save it as UTF-8") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); allow it or give another file") from error
    lines = unicodedata.normalize("NFC", text).splitlines()
    return [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
