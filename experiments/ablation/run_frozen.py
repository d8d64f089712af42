"""Runs a grid behind frozen features: the backbone stays as a plain CAM left it, only RCA's own parts are trained.

python experiments/ablation/run_frozen.py experiments/ablation/frozen.yaml --features runs/ablation/features

A run takes a minute, not half an hour. The features come from extract.py. Other options go to every run; finished runs
are kept.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.gridfile import load_grid
from ablate.jobs import choose
from ablate.surroundings import cores
from ablate.words import further_words

from rca_lightning.errors import ArgumentError, RCAError


def main(args: Sequence[str] | None = None) -> int:
    """Run a grid; returns the exit status, 1 if a run has failed.

    Raises:
        RCAError: a mistake that was found before anything ran.
    """
    words = list(sys.argv[1:] if args is None else args)
    options, others = _parser().parse_known_args(words)
    if options.processes < 1:
        raise ArgumentError("processes", options.processes, "give 1 or more")
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cores() // options.processes)))
    from frozen.campaign import FrozenCampaign

    grid = load_grid(options.grid)
    campaign = FrozenCampaign(
        grid=grid,
        chosen=choose(grid, options.rows, options.seeds, options.splits),
        features=options.features,
        out=options.out or Path("runs/ablation") / options.grid.stem,
        further=further_words(others),
        processes=options.processes,
        command=shlex.join(["python", "experiments/ablation/run_frozen.py", *words]),
    )
    try:
        failed = campaign.run()
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", flush=True)
        return 130
    if not failed:
        print(f"all done; next: python experiments/ablation/table.py {campaign.out}", flush=True)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("grid", type=Path, help="YAML file, see the README beside this script")
    parser.add_argument("--features", type=Path, required=True, help="folder with seed<s>/<split>.pt")
    parser.add_argument("--out", type=Path, help="output folder, default runs/ablation/<name of the grid>")
    parser.add_argument("--processes", type=int, default=cores(), help="runs at a time, default one a core")
    parser.add_argument("--rows", type=lambda text: text.split(","), help="only these rows, as a,b")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], help="only these, as 0,1")
    parser.add_argument("--splits", type=lambda text: text.split(","), help="other splits than those of the grid")
    return parser


if __name__ == "__main__":
    try:
        sys.exit(main())
    except RCAError as error:
        sys.exit(f"ablation: {error}")
