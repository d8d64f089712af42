"""Damaged and hostile files, as many as wanted: `python tests/fuzz/run.py --cases 50000 --seed 0`."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.fuzz.running import failures
from tests.fuzz.targets import TARGETS

_STEP = 500  # cases between two lines


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
            failed += _run(name, options, folder, -(-options.cases // len(names)))
    return int(failed > 0)


def _run(name: str, options: argparse.Namespace, folder: Path, cases: int) -> int:
    chosen = range(cases) if options.only is None else range(options.only, options.only + 1)
    failed, start = 0, time.perf_counter()
    for begin in range(chosen.start, chosen.stop, _STEP):
        numbers = range(begin, min(begin + _STEP, chosen.stop))
        print(f"{name}: cases {numbers.start} to {numbers.stop - 1} of seed {options.seed}", flush=True)
        for found in failures(name, numbers, seed=options.seed, folder=folder):
            failed += 1
            print(found, flush=True)
    seconds = time.perf_counter() - start
    rate = len(chosen) / seconds
    print(f"{name}: {len(chosen)} cases, {failed} failed, {seconds:.1f} s, {rate:.0f} a second", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
