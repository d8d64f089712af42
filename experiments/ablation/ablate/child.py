"""One child process, measured."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Usage:
    """What a child took.

    Attributes:
        status: exit status, negative for the signal that ended it.
        wall_seconds: from start to end.
        cpu_seconds: of all cores, with the processes that it waited for.
    """

    status: int
    wall_seconds: float
    cpu_seconds: float


class Child:
    """A command in a process group of its own, so that Ctrl-C at the terminal reaches the tool alone.

    Args:
        words: the command.
        log: receives what it prints, behind what is there already.
        environment: its variables.
        keep_open: file descriptor that it inherits; a lock on it lasts until the last child has ended.
    """

    def __init__(self, words: Sequence[str], log: Path, environment: Mapping[str, str], keep_open: int) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                list(words),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=dict(environment),
                pass_fds=(keep_open,),
                start_new_session=True,
            )
        self._start = time.perf_counter()

    @property
    def seconds(self) -> float:
        """Since its start."""
        return time.perf_counter() - self._start

    def poll(self) -> Usage | None:
        """What it took if it has ended; to be called until then, and not again."""
        pid, status, used = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return None
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return Usage(self._process.returncode, self.seconds, used.ru_utime + used.ru_stime)

    def send(self, number: signal.Signals) -> None:
        """Signal it and all of its own children."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def tail(log: Path, lines: int = 15) -> str:
    """The last lines of a log that say something."""
    text = log.read_text(errors="replace") if log.is_file() else ""
    return "\n".join([line for line in text.replace("\r", "\n").splitlines() if line.strip()][-lines:])
