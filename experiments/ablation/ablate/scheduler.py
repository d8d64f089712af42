"""Runs jobs side by side, in order, and ends them all when it is told to stop."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Protocol

from ablate.child import Child, Usage
from ablate.jobs import Job

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_BETWEEN_LOOKS = 0.1
_GRACE = 20.0  # seconds between asking a child to end and ending it


class Stopped(Exception):  # noqa: N818 - no error: somebody asked for it
    """The tool was told to stop, and its children have ended."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Observer(Protocol):
    """Is told what happens."""

    def started(self, job: Job) -> None:
        """A job begins."""

    def ended(self, job: Job, usage: Usage) -> str | None:
        """A job has ended; what went wrong, None if nothing."""

    def stopped(self, job: Job, usage: Usage) -> None:
        """A job was ended before its time."""

    def left_out(self, job: Job) -> None:
        """A job cannot run because the training that it reads has failed."""

    def waiting(self, running: Mapping[Job, float], remaining: Sequence[Job]) -> None:
        """Called often: seconds of what runs, and what has not begun."""


@dataclass
class Scheduler:
    """Runs each job in a process of its own.

    Attributes:
        processes: how many at a time.
        start: begins the command of a job.
        observer: is told.
    """

    processes: int
    start: Callable[[Job], Child]
    observer: Observer

    def run(self, jobs: Sequence[Job]) -> list[Job]:
        """Run them all; returns those that failed or were left out.

        Raises:
            Stopped: SIGINT or SIGTERM came.
        """
        self._waiting, self._running, self._failed = list(jobs), dict[Job, Child](), list[Job]()
        self._signal: int | None = None
        before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        try:
            while self._waiting or self._running:
                if self._signal is not None:
                    raise Stopped(self._signal)
                self._look_after_children()
                self._leave_out()
                self._begin()
                self.observer.waiting({job: child.seconds for job, child in self._running.items()}, self._waiting)
                time.sleep(_BETWEEN_LOOKS)
        finally:
            self._end_children()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._failed

    def _remember(self, number: int, frame: FrameType | None) -> Any:
        self._signal = number

    def _trainings(self, jobs: Sequence[Job]) -> set[Any]:
        return {job.fitted for job in jobs if job.split is None}

    def _begin(self) -> None:
        # Scorings of what is trained come before other trainings: results early, nothing half done for long.
        unfinished = self._trainings([*self._waiting, *self._running])
        ready = [job for job in self._waiting if job.split is None or job.fitted not in unfinished]
        ready.sort(key=lambda job: job.split is None)
        for job in ready[: max(0, self.processes - len(self._running))]:
            self._waiting.remove(job)
            self.observer.started(job)
            self._running[job] = self.start(job)

    def _look_after_children(self) -> None:
        for job, child in list(self._running.items()):
            usage = child.poll()
            if usage is None:
                continue
            del self._running[job]
            if self.observer.ended(job, usage) is not None:
                self._failed.append(job)

    def _leave_out(self) -> None:
        lost = self._trainings(self._failed)
        for job in [job for job in self._waiting if job.fitted in lost]:
            self._waiting.remove(job)
            self._failed.append(job)
            self.observer.left_out(job)

    def _end_children(self) -> None:
        deadline = time.monotonic() + _GRACE
        for child in self._running.values():
            child.send(signal.SIGTERM)
        while self._running:
            if time.monotonic() > deadline:
                for child in self._running.values():
                    child.send(signal.SIGKILL)
            for job, child in list(self._running.items()):
                usage = child.poll()
                if usage is not None:
                    del self._running[job]
                    self.observer.stopped(job, usage)
            time.sleep(_BETWEEN_LOOKS)
