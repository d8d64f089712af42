"""What a process holds, as Linux tells it."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_SELF = Path("/proc/self")


@dataclass(frozen=True)
class Held:
    """What a process holds at one time.

    Attributes:
        mib: memory that is in use, resident, in MiB.
        files: open file handles, sockets and pipes among them.
        children: processes that it has started and that have not been waited for.
        threads: of this process.
    """

    mib: float
    files: int
    children: int
    threads: int


def held() -> Held:
    """What this process holds now.

    Raises:
        OSError: where there is no `/proc`, so not on Linux.
    """
    pages = int((_SELF / "statm").read_text().split()[1])
    tasks = list((_SELF / "task").iterdir())
    children = [child for task in tasks for child in (task / "children").read_text().split()]
    # The listing itself opens one.
    files = len(list((_SELF / "fd").iterdir())) - 1
    return Held(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, files, len(children), len(tasks))
