"""Cases one after the other, each with its number, so that any one can be run again alone."""

from __future__ import annotations

import contextlib
import traceback
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path

from rca_lightning.errors import RCAError
from tests.fuzz.guard import GUARD, BrokenRule, limited
from tests.fuzz.targets import TARGETS, Target


def warm_up(target: Target, folder: Path) -> None:
    """Read the sound files: modules are imported now, and what they have in common is written."""
    for content in target.seeds:
        (folder / target.file).write_bytes(content)
        for reader in target.readers:
            with contextlib.suppress(RCAError):  # the file has one form of several
                reader(folder / target.file)


def failures(name: str, numbers: Iterable[int], *, seed: int, folder: Path) -> Iterator[str]:
    """Run cases of one target.

    Yields:
        Of each that ends in anything but a result or an error of the library: how to run it again, and what it was.
    """
    target = TARGETS[name]
    folder.mkdir(exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warm_up(target, folder)
        with limited():
            for number in numbers:
                found = _failure(target, target.case(seed, number), folder)
                if found is not None:
                    yield f"python tests/fuzz/run.py --target {name} --seed {seed} --only {number}\n{found}"


def _failure(target: Target, content: bytes, folder: Path) -> str | None:
    path = folder / target.file
    path.write_bytes(content)
    for reader in target.readers:
        try:
            with GUARD.watching(folder):
                reader(path)
        except RCAError as error:  # noqa: PERF203
            if not str(error).strip():
                return f"{reader.__name__}: an error that says nothing: {error!r}"
        except (Exception, BrokenRule):
            return f"{reader.__name__}: {''.join(traceback.format_exc(limit=-6))}"
    return None
