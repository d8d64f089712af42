"""Shows the progress of a loop: a bar in a terminal, else a line of text now and then."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import track

logger = logging.getLogger(__name__)

T = TypeVar("T")
SECONDS = 30.0  # between two lines


def show_progress(items: Iterable[T], *, what: str, total: int, bar: bool | None = None) -> Iterator[T]:
    """Hand on the items of a loop and show how many are done.

    Args:
        items: one after the other, as they come.
        what: stands before the numbers.
        total: number of items.
        bar: whether to draw a bar; default: if errors go to a terminal.

    Yields:
        The items.
    """
    if sys.stderr.isatty() if bar is None else bar:
        yield from track(items, description=what, total=total, console=Console(stderr=True))
        return
    last = time.monotonic()
    for done, item in enumerate(items):
        if time.monotonic() - last >= SECONDS:
            last = time.monotonic()
            logger.info("%s: image %d of %d", what, done, total)
        yield item
