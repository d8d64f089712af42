"""Runs a grid of ablations: rows of settings, several seeds each, through the command line of the library.

python experiments/ablation/run.py experiments/ablation/synthetic.yaml

Options that are not listed below go to every run, such as --data.root VOC2012 --model.weights resnet50.pth. A call that
was interrupted goes on where it stopped: finished runs are kept, trainings resume from their last checkpoint.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.campaign import RCA, Campaign
from ablate.gridfile import load_grid
from ablate.jobs import choose
from ablate.scheduler import Stopped
from ablate.words import further_words

from rca_lightning.errors import ArgumentError, RCAError


def main(args: Sequence[str] | None = None, program: tuple[str, ...] = RCA) -> int:
    """Run a grid.

    Args:
        args: words behind `run.py`; default those of the process.
        program: what is started for every job, for tests.

    Returns:
        The exit status: 0 if all runs are done, 1 if one has failed, 128 and the signal if one came.

    Raises:
        RCAError: a mistake that was found before anything ran.
    """
    words = list(sys.argv[1:] if args is None else args)
    campaign = read_options(words, program)
    if "--dry-run" in words:
        print("\n".join(campaign.commands()))
        return 0
    try:
        failed = campaign.run()
    except Stopped as stopped:
        print(f"stopped by {signal.Signals(stopped.number).name}; the same command goes on from here", flush=True)
        return 128 + stopped.number
    for job in failed:
        print(f"not done: {job.name}", flush=True)
    if not failed:
        print(f"all done; next: python experiments/ablation/table.py {campaign.out}", flush=True)
    return 1 if failed else 0


def read_options(words: Sequence[str], program: tuple[str, ...] = RCA) -> Campaign:
    """What was typed, checked against the grid."""
    options, others = _parser().parse_known_args(words)
    grid = load_grid(options.grid)
    chosen = choose(grid, options.rows, options.seeds, options.splits)
    if options.processes is not None and options.processes < 1:
        raise ArgumentError("processes", options.processes, "give 1 or more")
    return Campaign(
        grid=grid,
        chosen=chosen,
        out=options.out or Path("runs/ablation") / options.grid.stem,
        further=further_words(others),
        processes=options.processes,
        command=shlex.join(["python", "experiments/ablation/run.py", *words]),
        delete_checkpoints=options.delete_checkpoints,
        program=program,
    )


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("grid", type=Path, help="YAML file, see the README beside this script")
    parser.add_argument("--out", type=Path, help="output folder, default runs/ablation/<name of the grid>")
    parser.add_argument("--processes", type=int, help="runs at a time, default one a core, or one on a GPU")
    parser.add_argument("--rows", type=_names, help="only these rows, as a,b")
    parser.add_argument("--seeds", type=_numbers, help="only these seeds, as 0,1")
    parser.add_argument("--splits", type=_names, help="other splits than those of the grid, as train_a,val")
    parser.add_argument("--dry-run", action="store_true", help="check, and print the commands that would run")
    parser.add_argument(
        "--delete-checkpoints", action="store_true", help="delete checkpoints once all that reads them is scored"
    )
    return parser


def _names(text: str) -> list[str]:
    return text.split(",")


def _numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RCAError as error:
        sys.exit(f"ablation: {error}")
