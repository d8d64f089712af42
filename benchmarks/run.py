"""Runs benchmarks: python benchmarks/run.py [NAME ...] [--quick] [--out FOLDER]. Without a name, all of them."""

from __future__ import annotations

import argparse
import importlib
import logging
from pathlib import Path

HERE = Path(__file__).parent
NAMES = (
    "training_step",
    "operations",
    "clustering",
    "startup",
    "data_loading",
    "epoch",
    "coco_index",
    "listing",
    "prediction",
    "validation",
    "switches",
    "growth",
    "communication",
)

_WITH_PHOTOGRAPHS = ("data_loading", "epoch")


def main() -> None:
    """Run each named benchmark, print its table and write its JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; default: all")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not what it costs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON files")
    parser.add_argument(
        "--root", type=Path, help="folder with photographs for data_loading and epoch; default: generated"
    )
    given = parser.parse_args()
    unknown = sorted(set(given.names) - set(NAMES))
    if unknown:
        parser.error(f"no benchmark is called {', '.join(unknown)}; give some of {', '.join(NAMES)}")
    logging.disable(logging.WARNING)
    for name in given.names or NAMES:
        options = {"root": given.root} if name in _WITH_PHOTOGRAPHS else {}
        result = importlib.import_module(name).run(quick=given.quick, **options)
        result.show()
        print(f"written to {result.write(given.out)}\n")


if __name__ == "__main__":
    main()
