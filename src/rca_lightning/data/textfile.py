"""Reading the small text files that describe a data set."""

from __future__ import annotations

from pathlib import Path

from rca_lightning.errors import DataError, DatasetNotFoundError


def read_lines(path: Path, *, what: str) -> list[tuple[int, str]]:
    """Read the non-empty lines of a UTF-8 text file.

    Args:
        path: the file; a byte order mark and Windows line ends are accepted.
        what: the argument the file came by, for the error.

    Returns:
        Pairs of line number (from 1) and line, without surrounding white space.

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
    return [(number, line.strip()) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
