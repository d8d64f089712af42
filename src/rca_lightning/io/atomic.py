"""Files that are either whole or not there, and locks for processes that take turns."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from rca_lightning.errors import OutputError, RCAError

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


def check_writable(name: str, *folders: Path) -> None:
    """Find out before the long work whether folders take files; they are made if missing.

    Args:
        name: of the argument.
        folders: the first is its value, others belong to it.

    Raises:
        OutputError: if one cannot be made or written to.
    """
    with output_errors(name, folders[0]):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell of a disk mounted read-only
                pass


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


def lock(file: int) -> None:
    """Wait until no other process holds this file or folder, and hold it until the descriptor is closed."""
    if os.name == "posix":
        import fcntl

        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold a folder, which is made if missing; without a lock where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held = os.open(folder, os.O_RDONLY)
    except OSError:
        yield
        return
    try:
        lock(held)
        yield
    finally:
        os.close(held)
