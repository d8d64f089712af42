"""Shows how far long work is: a bar in a terminal, else a line of text now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.file_proxy import FileProxy
from rich.progress import track

from rca_lightning.rank import is_first_process

logger = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS = 30.0  # between two lines
_told: list[Callable[[int, int], None]] = []  # the last one shows progress in place of bars and lines


def show_progress(items: Iterable[T], *, what: str, total: int, bar: bool | None = None) -> Iterator[T]:
    """Hand on the items of a loop and show how many are done; of several processes the first does.

    Args:
        items: one after the other, as they come.
        what: stands before the numbers.
        total: number of items.
        bar: whether to draw a bar; default: if errors go to a terminal that shows no other.

    Yields:
        The items.

    Example:
        >>> list(show_progress("ab", what="letters", total=2))
        ['a', 'b']
    """
    if _told:
        tell = _told[-1]
        for done, item in enumerate(items):
            tell(done, total)
            yield item
        tell(total, total)
    elif not is_first_process():
        yield from items
    elif _is_free_terminal() if bar is None else bar:
        yield from track(items, description=what, total=total, console=Console(stderr=True))
    else:
        begun = last = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            if now - last >= SECONDS:
                last = now
                left = f", about {duration_in_words((now - begun) / done * (total - done))} left" if done else ""
                logger.info("%s: image %d of %d%s", what, done, total, left)
            yield item


@contextmanager
def progress_told_to(tell: Callable[[int, int], None]) -> Iterator[None]:
    """Lets the progress of loops within be shown by a function, as by one bar over several steps.

    Args:
        tell: gets how many are done, and of how many.
    """
    _told.append(tell)
    try:
        yield
    finally:
        _told.remove(tell)


@contextmanager
def show_work(what: str) -> Iterator[None]:
    """Shows in a terminal that work goes on whose parts cannot be counted; elsewhere nothing.

    Args:
        what: is done.
    """
    if _told or not _is_free_terminal() or not is_first_process():
        yield
        return
    with Console(stderr=True).status(what):
        yield


def _is_free_terminal() -> bool:
    """Whether a bar can be drawn: of two, each would draw over the other."""
    return sys.stderr.isatty() and not isinstance(sys.stderr, FileProxy)  # which a bar puts there while it is drawn


def duration_in_words(seconds: float) -> str:
    """A time in words.

    Example:
        >>> [duration_in_words(seconds) for seconds in (1.25, 5, 64.2, 300, 3725)]
        ['1.2 s', '5 s', '1 min 4 s', '5 min', '1 h 2 min']
    """
    if seconds < 10:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    large, small = (f"{whole // 60} min", f"{whole % 60} s")
    if whole >= 3600:
        large, small = (f"{whole // 3600} h", f"{whole % 3600 // 60} min")
    return large if small.startswith("0 ") else f"{large} {small}"
