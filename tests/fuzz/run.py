"""Damaged and hostile files, as many as wanted: `python tests/fuzz/run.py --cases 50000 --seed 0`."""

from __future__ import annotations

import argparse
import faulthandler
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.running import failures
from tests.fuzz.targets import TARGETS

_STEP = 500  # cases between two lines
_STUCK = 600.0  # seconds after which a step that not even the alarm ends stops the run, with a traceback


def main() -> int:
    """Run the cases that the words ask for.

    Returns:
        1 if one failed, else 0.
    """
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=50_000, help="over all targets together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--target", choices=TARGETS, help="one kind of file; default all")
    parser.add_argument("--only", type=int, help="number of one case, to run it again; needs --target")
    parser.add_argument("--keep", type=Path, help="folder in which the last file stays")
    options = parser.parse_args()
    names = [options.target] if options.target else list(TARGETS)
    failed = 0
    with tempfile.TemporaryDirectory() as temporary:
        for name in names:
            folder = (options.keep or Path(temporary)) / name
            folder.parent.mkdir(exist_ok=True)
            failed += _run(name, options, folder, -(-options.cases // len(names)))
    return int(failed > 0)


def _run(name: str, options: argparse.Namespace, folder: Path, cases: int) -> int:
    first = options.only or 0
    ends = range(first, first + 1 if options.only is not None else cases, _STEP)
    failed, start, done = 0, time.perf_counter(), 0
    for begin in ends:
        numbers = range(begin, min(begin + _STEP, first + 1 if options.only is not None else cases))
        print(f"{name}: cases {numbers.start} to {numbers.stop - 1} of seed {options.seed}", flush=True)
        faulthandler.dump_traceback_later(_STUCK, exit=True)
        for found in failures(name, numbers, seed=options.seed, folder=folder):
            failed += 1
            print(found, flush=True)
        faulthandler.cancel_dump_traceback_later()
        done += len(numbers)
    seconds = time.perf_counter() - start
    print(f"{name}: {done} cases, {failed} failed, {seconds:.1f} s, {done / seconds:.0f} a second", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
