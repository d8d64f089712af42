"""Processes of one machine that take turns; where the system has no such locks, they do not."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


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
