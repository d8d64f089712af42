"""The command `rca compare`: two score files, their difference, and whether they may be compared."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.cli.console import load


def main(words: Sequence[str]) -> None:
    """Compares two score files and prints the difference.

    Args:
        words: what stands after `rca compare`.

    Raises:
        ResultsError: if the scores were not made alike, a line for each reason.
        RCAError: for files that cannot be used.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    load("rca_lightning.evaluation.comparison").compare_files(given.first, given.second, anyway=given.anyway)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca compare",
        description=(
            "Compare two scores: the difference with its paired bootstrap interval, from the file _images.npz beside "
            "each, and IoU by class. Scores that were not made alike are refused: other images, tags, supervision, "
            "scales, flip, CRF or refinement, or a threshold or background chosen in another way."
        ),
        allow_abbrev=False,
    )
    known = "validate.json, test.json, pseudo_labels.json, or run.json of rca masks"
    parser.add_argument("first", type=Path, metavar="A.json", help=known)
    parser.add_argument("second", type=Path, metavar="B.json", help="another; the difference is B less A")
    parser.add_argument("--anyway", action="store_true", help="print an unfair comparison too, marked as such")
    return parser
