"""Writes files atomically and locks files and folders between processes."""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
        if durable and os.name == "posix":  # elsewhere a folder cannot be opened
            handle = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


_REMEDY = "give a folder where files can be made"


@contextmanager
def output_errors(name: str, path: str | Path, remedy: str = _REMEDY) -> Iterator[None]:
    """Turn an `OSError`, such as a full disk, into an `OutputError` with the argument's name, value and remedy."""
    try:
        yield
    except RCAError:  # some are OSErrors too, and name another file
        raise
    except OSError as error:
        raise OutputError(f"{name}={str(path)!r} cannot be written to ({error}); {remedy}") from error


def check_writable(name: str, *folders: Path, remedy: str = _REMEDY) -> None:
    """Make folders and check that they take files, before any long work.

    Args:
        name: of the argument; its value is the first folder.
        folders: the folders.
        remedy: what to do where one takes no files.

    Raises:
        OutputError: one cannot be made or written to.
    """
    with output_errors(name, folders[0], remedy):
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell of a disk mounted read-only
                pass


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files that killed writers of `path` have left; no process may be writing it now."""
    for part in path.parent.glob(f"{glob.escape(_beginning(path))}{'?' * _RANDOM}{_ENDING}"):
        part.unlink(missing_ok=True)


_RANDOM = 8  # characters that mkstemp puts between


def _beginning(path: Path) -> str:
    return f".{path.stem[:40]}."


def lock(file: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock a file or folder against other processes until the descriptor is closed.

    Args:
        file: its descriptor.
        shared: whether others may hold it with `shared` too.
        wait: for those that hold it.

    Returns:
        False where another process holds it and `wait` is off; True also on a file system without locks.
    """
    if os.name == "posix":
        import fcntl

        how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
        try:
            fcntl.flock(file, how)
        except BlockingIOError:
            return False
        except OSError:  # a file system without locks
            return True
    return True


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Make a folder if it is missing and lock it; go on without a lock where that fails."""
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
