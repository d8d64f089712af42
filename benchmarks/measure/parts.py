"""One JSON of several parts, each within a time of its own; a part that fails loses no other."""

from __future__ import annotations

import contextlib
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rca_lightning.io.atomic import write_atomically

_AGAIN = 5.0  # seconds until the alarm rings again, should something have swallowed the error


class Parts:
    """Runs parts and writes the file after each.

    Args:
        path: of the JSON.
        content: what stands in it beside the parts.
        seconds: time of all parts together.
    """

    def __init__(self, path: Path, content: dict[str, Any], *, seconds: float) -> None:
        self.path = path
        self.content = {**content, "parts": {}}
        self._end = time.monotonic() + seconds

    def run(self, name: str, work: Callable[[dict[str, Any]], object], *, seconds: float) -> None:
        """Run one part; an error is noted as text under "error", beside what had been found by then.

        Args:
            name: of the part.
            work: fills in the dictionary it is given, as it goes.
            seconds: its time, or less where less is left of the whole.
        """
        found: dict[str, Any] = {}
        self.content["parts"][name] = found
        started = time.monotonic()
        try:
            with time_limit(min(seconds, self._end - started)):
                work(found)
        except (Exception, SystemExit) as error:
            found["error"] = f"{type(error).__name__}: {error}"
        found["seconds"] = round(time.monotonic() - started, 1)
        text = json.dumps(self.content, indent=2) + "\n"
        write_atomically(self.path, lambda file: file.write(text.encode()))

    @property
    def errors(self) -> dict[str, str]:
        """The error of each part that failed."""
        return {name: found["error"] for name, found in self.content["parts"].items() if "error" in found}


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise in what is still running after so long: as soon as Python gets to act, on the main thread, on Unix.

    Raises:
        TimeoutError: when the time is over.
    """
    if seconds <= 0:
        raise TimeoutError("no time was left for it")

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done within {seconds:.0f} s")

    handler, started = signal.signal(signal.SIGALRM, stop), time.monotonic()
    remaining, _ = signal.setitimer(signal.ITIMER_REAL, seconds, _AGAIN)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if remaining:  # of whoever else watches the time, such as a test runner
            signal.setitimer(signal.ITIMER_REAL, max(remaining - (time.monotonic() - started), 0.001))
