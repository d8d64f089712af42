"""The command `rca calibrate`: a background threshold from a few masks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.cli.console import load


def main(words: Sequence[str]) -> None:
    """Prints the background threshold that the masks of a score choose.

    Args:
        words: what stands after `rca calibrate`.

    Raises:
        RCAError: for a file that cannot be used, or a number of masks that there are not.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    load("rca_lightning.evaluation.threshold_calibration").print_calibration(
        given.scores, masks=given.masks, seed=given.seed
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca calibrate",
        description=(
            "Choose the background threshold from a few masks, with an interval. rca validate scores the photographs "
            "that have a mask and leaves validate_images.npz; this reads it. Give the threshold to rca masks "
            "--threshold, rca labels --background_threshold or rca validate --model.seed_threshold."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("scores", type=Path, metavar="SCORES", help="validate_images.npz, or validate.json beside it")
    parser.add_argument("--masks", type=int, metavar="N", help="take N of the masks, at random (default: all)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the draws (default: %(default)s)")
    return parser
