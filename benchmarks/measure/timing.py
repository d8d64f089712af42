"""Times of several ways to do one thing, taken in turns so that a machine that slows down slows all of them."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import cv2
import torch


@dataclass
class Times:
    """Seconds of each round.

    Attributes:
        wall: by the clock.
        processor: of this process, its threads and the processes it has waited for; on a shared machine the steadier
            of the two.
    """

    wall: list[float]
    processor: list[float]

    @property
    def seconds(self) -> float:
        """Median by the clock."""
        return statistics.median(self.wall)

    @property
    def steady(self) -> float:
        """Median by the clock where an accelerator is waited for, else of the processor, all threads added up."""
        return statistics.median(self.wall if torch.cuda.is_available() else self.processor)


def in_turns(ways: Mapping[str, Callable[[], object]], *, rounds: int, warmup: int = 1) -> dict[str, Times]:
    """Run every way once a round.

    Args:
        ways: what to run, by name.
        rounds: how often each is timed.
        warmup: rounds before the first that counts.
    """
    times = {name: Times([], []) for name in ways}
    for turn in range(warmup + rounds):
        for name, run in ways.items():
            _finish()
            wall, processor = time.perf_counter(), _processor_seconds()
            run()
            _finish()
            if turn >= warmup:
                times[name].wall.append(time.perf_counter() - wall)
                times[name].processor.append(_processor_seconds() - processor)
    return times


@contextmanager
def one_thread() -> Iterator[None]:
    """One thread for all arithmetic, as a loading process has."""
    threads, of_pictures = torch.get_num_threads(), cv2.getNumThreads()
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        cv2.setNumThreads(of_pictures)


def ratio(times: Times, reference: Times) -> float:
    """Median over the rounds of how many times longer it took than the reference in the same round.

    Where nothing waits for an accelerator it is the ratio of processor times, which other processes hardly disturb.
    """
    if torch.cuda.is_available():
        return statistics.median(a / b for a, b in zip(times.wall, reference.wall, strict=True))
    return statistics.median(a / b for a, b in zip(times.processor, reference.processor, strict=True))


def as_rows(times: Mapping[str, Times], reference: str) -> list[dict[str, float | str]]:
    """One row a way: median seconds by the clock and of the processor, and the ratio to the reference."""
    return [
        {
            "way": name,
            "seconds": found.seconds,
            "processor_seconds": statistics.median(found.processor),
            "ratio": ratio(found, times[reference]),
            "rounds": len(found.wall),
        }
        for name, found in times.items()
    ]


def _processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
