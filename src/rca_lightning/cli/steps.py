"""Progress of a command of several steps: one bar over all of them, with an estimate of the time that is left."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from rca_lightning.io.progress import SECONDS, duration_in_words, progress_told_to

logger = logging.getLogger(__name__)


@dataclass
class _Step:
    name: str
    expected: float  # seconds
    spent: float | None = None


class Steps:
    """Shows how far a command is: a bar in a terminal, else a line of text now and then.

    The time left is that of the step that runs, from what it has done, and what the later ones are expected to take,
    corrected by how long the steps before took.

    Args:
        expected: seconds that each step may take, by name, in their order.
        every: the shortest time in seconds between two lines where there is no terminal.

    Example:
        >>> steps = Steps({"look": 1.0, "fit": 9.0}, every=60)
        >>> with steps:
        ...     steps.begin("look")
        ...     steps.update(3, 4)
        ...     steps.end()
        >>> list(steps.seconds)
        ['look']
    """

    def __init__(self, expected: dict[str, float], *, every: float = SECONDS) -> None:
        self._steps = {name: _Step(name, seconds) for name, seconds in expected.items()}
        self._every = every
        self._current: _Step | None = None
        self._begun = self._shown = time.monotonic()
        self._since: tuple[float, float] | None = None  # when the step had done a first part, and which share
        self._share = 0.0
        self._bar: Progress | None = None
        self._loops = progress_told_to(self._tell)

    def __enter__(self) -> Steps:
        """Start the bar; loops that show their progress now do so as that of the step that runs."""
        self._loops.__enter__()
        if sys.stderr.isatty():
            columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
            self._bar = Progress(*columns, TextColumn("{task.fields[left]}"), console=Console(stderr=True))
            self._task = self._bar.add_task("", total=1.0, left="")
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop the bar."""
        self._loops.__exit__(kind, error, trace)
        if self._bar is not None:
            self._bar.stop()

    @property
    def seconds(self) -> dict[str, float]:
        """How long each step took that has ended."""
        return {step.name: round(step.spent, 2) for step in self._steps.values() if step.spent is not None}

    def expect(self, name: str, seconds: float) -> None:
        """Tell how long a later step may take, once that is known better."""
        self._steps[name].expected = seconds

    def begin(self, name: str) -> None:
        """End the step that runs, if any, and begin the next; one that runs already goes on."""
        if self._current is self._steps[name]:
            return
        self.end()
        self._current, self._begun, self._since, self._share = self._steps[name], time.monotonic(), None, 0.0
        self._show(name, always=True)

    def end(self) -> None:
        """End the step that runs."""
        if self._current is not None:
            self._current.spent = (self._current.spent or 0.0) + time.monotonic() - self._begun
            self._current = None
            self._show("")

    def skip(self, *names: str) -> None:
        """Tell that steps are not needed, as what they make is there."""
        for name in names:
            self._steps[name].expected = 0.0

    def update(self, done: int, total: int) -> None:
        """Tell what part of the step that runs is done."""
        if self._current is None or total <= 0:
            return
        self._share = min(1.0, done / total)
        self._show(f"{self._current.name}: {done} of {total}")

    def _tell(self, done: int, total: int) -> None:
        """Show a loop within the step that runs, which may have several: its share says nothing of the time left."""
        if self._current is not None:
            self._show(f"{self._current.name}: {done} of {total}")

    def left(self) -> float:
        """Seconds that are left, about."""
        names = list(self._steps)
        later: Sequence[str] = names
        now = 0.0
        if self._current is not None:
            later = names[names.index(self._current.name) + 1 :]
            now = self._left_of_step(self._current)
        expected = sum(self._steps[name].expected for name in later if self._steps[name].spent is None)
        return now + expected * self._correction()

    def _left_of_step(self, step: _Step) -> float:
        spent = time.monotonic() - self._begun
        if self._share > 0:
            # What the step does before its first part, such as loading, is not to be done again for each of the rest.
            self._since = self._since or (spent, self._share)
            begun, share = self._since
            if self._share > share:
                return (spent - begun) / (self._share - share) * (1 - self._share)
            return spent / self._share * (1 - self._share)
        return max(0.0, step.expected * self._correction() - spent)

    def _correction(self) -> float:
        """Ratio of the time that ended steps took to what was expected, within reason."""
        ended = [(step.spent, step.expected) for step in self._steps.values() if step.spent is not None]
        expected = sum(of for _, of in ended)
        return 1.0 if expected < 5 else min(4.0, max(0.25, sum(spent for spent, _ in ended) / expected))

    def _show(self, text: str, *, always: bool = False) -> None:
        left, now = self.left(), time.monotonic()
        spent = sum(step.spent or 0.0 for step in self._steps.values()) + (now - self._begun if self._current else 0.0)
        if self._bar is not None:
            done = spent / max(spent + left, 1e-9)
            self._bar.update(self._task, completed=done, description=text, left=f"about {_estimate(left)} left")
        elif always or now - self._shown >= self._every:
            print(f"{text}, about {_estimate(left)} left", file=sys.stderr, flush=True)
        else:
            return
        self._shown = now


def _estimate(seconds: float) -> str:
    """A time in words, no more exact than it can be known: in seconds, from 100 on in minutes."""
    return duration_in_words(round(seconds) if seconds < 99 else 60 * round(seconds / 60))
