"""Table and plots of the results of a grid.

python experiments/ablation/table.py runs/ablation/synthetic --out experiments/ablation/results/synthetic

Writes table.md and its plots. With --out elsewhere than the results it copies these too, small enough to be committed.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.markdown import markdown
from ablate.plots import draw
from ablate.publish import publish
from ablate.summary import read_results

from rca_lightning.errors import RCAError
from rca_lightning.io.atomic import write_atomically


def main(args: Sequence[str] | None = None) -> None:
    """Write `table.md`, its plots, and a copy of the results.

    Raises:
        RCAError: there are no results, or matplotlib is missing.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="output folder of run.py")
    parser.add_argument("--out", type=Path, help="folder for table.md, plots and results; default the same")
    options = parser.parse_args(args)
    out = options.out or options.folder
    summary = read_results(options.folder)
    publish(summary, options.folder, out)
    text = markdown(summary, pictures=draw(summary, out))
    write_atomically(out / "table.md", lambda file: file.write(text.encode()))
    print(text)
    print(f"written to {out}")


if __name__ == "__main__":
    try:
        main()
    except RCAError as error:
        sys.exit(f"ablation: {error}")
