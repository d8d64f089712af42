"""Cases one after the other in a process of their own, each with its number, so that any one can be run again alone."""

from __future__ import annotations

import contextlib
import multiprocessing
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path

from rca_lightning.errors import RCAError
from tests.fuzz.guard import BrokenRule, Guard, limited
from tests.fuzz.targets import TARGETS, Target

STUCK = 120.0  # seconds that a case may take before the process is ended, if no alarm reaches it


def failures(name: str, numbers: range, *, seed: int, folder: Path) -> Iterator[str]:
    """Run cases of one target.

    Yields:
        Of each that ends in anything but a result or an error of the library: how to run it again, and what it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    assert TARGETS[name].seeds  # made once, here
    number = numbers.start
    while number < numbers.stop:
        ours, its = multiprocessing.Pipe(duplex=False)
        context = multiprocessing.get_context("fork")
        child = context.Process(target=_run, args=(name, range(number, numbers.stop), seed, folder, its))
        child.start()
        its.close()
        try:
            while ours.poll(STUCK):
                number, found = ours.recv()
                if found is not None:
                    yield _told(name, seed, number, found)
                number += 1
            yield _told(name, seed, number, f"nothing for {STUCK} s")
        except EOFError:  # the child has ended
            if number < numbers.stop:
                child.join()
                yield _told(name, seed, number, f"the process ended with status {child.exitcode}")
        finally:
            child.kill()
            child.join()
        number += 1


def _told(name: str, seed: int, number: int, found: str) -> str:
    return f"python tests/fuzz/run.py --target {name} --seed {seed} --only {number}\n{found}"


def _run(name: str, numbers: range, seed: int, folder: Path, results: Connection) -> None:
    """Send the number of each case, with what went wrong or None."""
    target, guard = TARGETS[name], Guard()
    warnings.simplefilter("ignore")
    warm_up(target, folder)
    with limited():
        for number in numbers:
            results.send((number, failure(target, target.case(seed, number), folder, guard)))


def warm_up(target: Target, folder: Path) -> None:
    """Read the sound files: modules are imported now, and what they have in common is written."""
    for content in target.seeds:
        (folder / target.file).write_bytes(content)
        for reader in target.readers:
            with contextlib.suppress(RCAError):  # the file has one form of several
                reader(folder / target.file)


def failure(target: Target, content: bytes, folder: Path, guard: Guard) -> str | None:
    """What went wrong when a file of this content was read; None if nothing."""
    path = folder / target.file
    path.write_bytes(content)
    for reader in target.readers:
        try:
            with guard.watching(folder):
                reader(path)
        except RCAError as error:  # noqa: PERF203
            if not str(error).strip():
                return f"{reader.__name__}: an error that says nothing: {error!r}"
        except (Exception, BrokenRule):
            return f"{reader.__name__}: {''.join(traceback.format_exc(limit=-6))}"
    return None
