"""One call of the tool at a time in an output folder."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rca_lightning.errors import OutputError


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Hold the folder; gives the file descriptor that children must keep open.

    The system frees the lock when the last process that has it open ends, so what a killed tool left running is
    noticed too.

    Raises:
        OutputError: another call, or a process that it left, is at work there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise OutputError(
                f"{folder}: another run.py, or a training that it left behind, is at work here; wait for it or end it"
            ) from error
        yield file.fileno()
