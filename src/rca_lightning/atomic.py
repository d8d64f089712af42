"""Files that are either whole or not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from rca_lightning.errors import OutputError, RCAError


def write_atomically(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: final name; its folder is made if missing.
        write: gets the open binary file.

    Raises:
        OSError: from the file system, such as a full disk; the temporary file is removed and an older
            `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The ending marks what a killed process leaves behind; readers look for the final endings only.
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.stem[:40]}.", suffix=".part")
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
        # mkstemp makes files private; results follow the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


@contextmanager
def output_errors(name: str, path: str | Path, remedy: str = "give a folder where files can be made") -> Iterator[None]:
    """Say of a refusal by the file system, such as a full disk, which argument it is about.

    Args:
        name: of the argument.
        path: its value.
        remedy: what to do.

    Raises:
        OutputError: in place of an `OSError`; errors of this library pass.
    """
    try:
        yield
    except RCAError:  # some are OSErrors too, and name another file
        raise
    except OSError as error:
        raise OutputError(f"{name}={str(path)!r} cannot be written to ({error}); {remedy}") from error


def check_writable(name: str, folder: Path, *subfolders: Path) -> None:
    """Find out before the long work whether folders take files; they are made if missing.

    Args:
        name: of the argument.
        folder: its value.
        subfolders: of it, that files go into.

    Raises:
        OutputError: if one of them cannot be made or written to; it names `folder`.
    """
    with output_errors(name, folder):
        for place in (folder, *subfolders):
            place.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=place):  # permissions alone do not tell of a disk mounted read-only
                pass
