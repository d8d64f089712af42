"""Files that are either whole or not there."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO

_ENDING = ".part"  # marks what a killed process leaves behind; readers look for the final endings only


def write_atomically(path: Path, write: Callable[[IO[bytes]], object], *, durable: bool = False) -> None:
    """Write a file under a temporary name in the same folder, then rename it.

    Args:
        path: final name; its folder is made if missing.
        write: gets the open binary file.
        durable: wait until it is on the disk, so that it is whole even after a power cut.

    Raises:
        OSError: from the file system, such as a full disk; the temporary file is removed and an older
            `path` stays as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=_beginning(path), suffix=_ENDING)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        # mkstemp makes files private; results follow the user's umask.
        umask = os.umask(0)
        os.umask(umask)
        Path(temporary).chmod(0o666 & ~umask)
        Path(temporary).replace(path)
        if durable:
            _sync_folder(path.parent)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of a file that was to be written as `path`; nobody may be writing it."""
    for part in path.parent.glob(f"{glob.escape(_beginning(path))}{'?' * _RANDOM}{_ENDING}"):
        part.unlink(missing_ok=True)


_RANDOM = 8  # characters that mkstemp puts between


def _beginning(path: Path) -> str:
    return f".{path.stem[:40]}."


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":  # elsewhere a folder cannot be opened
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
