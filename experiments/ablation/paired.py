"""Difference of two rows of a grid with its paired bootstrap interval over images, both at thresholds of another split.

python experiments/ablation/paired.py runs/ablation/equal_terms K20-p rca-p --chosen-on train_a

Reads the output folder of run.py, whose work/ has the counts of single images. `rca compare` compares two score files
at the thresholds that stand in them.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from table import best_threshold

from rca_lightning.errors import DataError, RCAError
from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.intervals import paired_difference


def differences(folder: Path, first: str, second: str, source: str) -> Iterator[str]:
    """A line for each seed that both rows have and each split but the one that chose the thresholds.

    A row of which nothing depends on the seed has seed 0 alone, which stands for all.

    Raises:
        DataError: if a row has no finished run, or no seed is common.
    """
    own, theirs = _runs(folder, second), _runs(folder, first)
    if set(theirs) == {0}:
        theirs = dict.fromkeys(own, theirs[0])
    common = sorted(set(own) & set(theirs))
    if not common:
        raise DataError(f"{folder}: {first!r} and {second!r} have no seed in common; run more seeds")
    for seed in common:
        rows = (json.loads(theirs[seed].read_text()), json.loads(own[seed].read_text()))
        for split in (name for name in rows[0]["splits"] if name != source and name in rows[1]["splits"]):
            work = [folder / "work" / path.stem / split / "validate_images.npz" for path in (theirs[seed], own[seed])]
            thresholds = [float(best_threshold(row["splits"][source])) for row in rows]
            found = paired_difference(
                *(ImageCounts.load(path) for path in work), thresholds=(thresholds[0], thresholds[1])
            )
            value, low, high = (100 * part for part in (found.value, found.low, found.high))
            yield f"{split}, seed {seed}: {second} over {first} {value:+.1f} ({low:+.1f} to {high:+.1f})"


def _runs(folder: Path, row: str) -> dict[int, Path]:
    runs = {}
    for path in sorted((folder / "results").glob(f"{row}-seed*.json")):
        run = json.loads(path.read_text())
        if run["row"] == row and "splits" in run:
            runs[run["seed"]] = path
    if not runs:
        raise DataError(f"{folder}: row {row!r} has no finished run")
    return runs


def main(words: Sequence[str] | None = None) -> None:
    """Print the differences.

    Raises:
        RCAError: for rows that cannot be compared.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of run.py")
    parser.add_argument("first", help="name of a row")
    parser.add_argument("second", help="another; the difference is second less first")
    parser.add_argument("--chosen-on", metavar="SPLIT", default="train_a", help="split that thresholds are chosen on")
    options = parser.parse_args(words)
    for line in differences(options.folder, options.first, options.second, options.chosen_on):
        print(line)


if __name__ == "__main__":
    try:
        main()
    except RCAError as error:
        sys.exit(f"ablation: {error}")
