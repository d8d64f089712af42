"""What a reader may do with a file: take some time and memory, look at the files it was given, and no more."""

from __future__ import annotations

import os
import resource
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SECONDS = 5.0  # of the processor, for one case
MEMORY = 1 << 30  # bytes beyond what the process has taken before

# A file of data has no reason to lead to any of these.
_FORBIDDEN = {
    *("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.remove", "os.rename", "os.mkdir", "os.symlink"),
    *("subprocess.Popen", "socket.connect", "socket.getaddrinfo", "urllib.Request", "shutil.rmtree", "ctypes.dlopen"),
}


class BrokenRule(BaseException):
    """A reader did what no file may make it do; no `except Exception` of a reader swallows it."""


class Guard:
    """Watches what Python does inside `with guard.watching(folder)`."""

    def __init__(self) -> None:
        self._folder: str | None = None
        self.broken: list[str] = []
        sys.addaudithook(self._hook)  # cannot be removed, so it is for a process that ends soon

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._folder is None:
            return
        if event in _FORBIDDEN:
            self._break(f"{event}{arguments!r:.200}")
        elif event == "open" and isinstance(arguments[0], (str, bytes, os.PathLike)):
            path = os.path.realpath(os.fsdecode(arguments[0]))
            if not path.startswith((self._folder, sys.prefix, sys.base_prefix, "/proc/self/")):
                self._break(f"opened {path!r}")

    def _break(self, what: str) -> None:
        self.broken.append(what)
        raise BrokenRule(what)

    @contextmanager
    def watching(self, folder: Path) -> Iterator[None]:
        """Let what happens inside look into this folder only, and end it after `SECONDS`.

        Raises:
            BrokenRule: something else was tried, or time is up.
        """
        self.broken = []
        signal.setitimer(signal.ITIMER_PROF, SECONDS)
        self._folder = os.path.realpath(folder)
        try:
            yield
        finally:
            self._folder = None
            signal.setitimer(signal.ITIMER_PROF, 0)
        if self.broken:
            raise BrokenRule(self.broken[0])


@contextmanager
def limited() -> Iterator[None]:
    """Give the process `MEMORY` more than it has, and cases an alarm."""

    def ring(number: int, frame: Any) -> None:
        raise BrokenRule(f"more than {SECONDS} s")

    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = signal.signal(signal.SIGPROF, ring)
    resource.setrlimit(resource.RLIMIT_AS, (taken + MEMORY, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.signal(signal.SIGPROF, before)
