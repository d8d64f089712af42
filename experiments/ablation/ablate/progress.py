"""Lines that say what runs, what remains and for about how long."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence

from ablate.jobs import Job

_BETWEEN_LINES = 300.0


class Progress:
    """Prints a line whenever something begins or ends, and every five minutes.

    Args:
        total: number of jobs.
        processes: how many run at a time.
        seconds: of jobs of earlier calls, by kind.
    """

    def __init__(self, total: int, processes: int, seconds: Mapping[str, Sequence[float]]) -> None:
        self._total = total
        self._processes = processes
        self._seconds: dict[str, list[float]] = defaultdict(list)
        for kind, values in seconds.items():
            self._seconds[kind].extend(values)
        self._done = 0
        self._next = time.monotonic() + _BETWEEN_LINES

    def say(self, text: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} [{self._done}/{self._total}] {text}", flush=True)

    def count(self, job: Job, seconds: float | None) -> None:
        """A job is over; its seconds if they tell how long others will take."""
        self._done += 1
        if seconds is not None:
            self._seconds[job.kind].append(seconds)

    def waiting(self, running: Mapping[Job, float], remaining: Sequence[Job]) -> None:
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _BETWEEN_LINES
            names = ", ".join(f"{job.name} ({duration(seconds)})" for job, seconds in running.items())
            self.say(f"running {names or 'nothing'}; {self.left(running, remaining)}")

    def left(self, running: Mapping[Job, float], remaining: Sequence[Job]) -> str:
        """What has not begun, and about how long all of it will take."""
        if not running and not remaining:
            return "nothing to do"
        fits = sum(job.split is None for job in remaining)
        waiting = f"{_count(fits, 'training')} and {_count(len(remaining) - fits, 'scoring')} to begin"
        kinds = {job.kind for job in [*running, *remaining]}
        if not all(self._seconds[kind] for kind in kinds):
            return f"{waiting}, time left not known yet"
        mean = {kind: statistics.mean(self._seconds[kind]) for kind in kinds}
        work = sum(mean[job.kind] for job in remaining)
        work += sum(max(mean[job.kind] - seconds, 0) for job, seconds in running.items())
        return f"{waiting}, about {duration(work / self._processes)} left"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def duration(seconds: float) -> str:
    """`95` as `1 min 35 s`, `4000` as `1 h 07 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
