"""Keeps what a trained network sees, for run_frozen.py.

python experiments/ablation/extract.py --config experiments/voc2012_mini/cam.yaml --data.root VOC2012 \
  --ckpt_path runs/voc2012_mini/cam/checkpoints/last.ckpt --out runs/ablation/features/seed0

Options that are not listed below go to the data, such as --data.root VOC2012.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ablate.commandline import CommandLine
from ablate.words import further_words
from frozen.features import extract

from rca_lightning import RCAModule, WSSSDataModule
from rca_lightning.errors import RCAError


def main(args: Sequence[str] | None = None) -> None:
    """Write `<split>.pt` for every split that is not there yet.

    Raises:
        RCAError: the configuration, the data or the checkpoint is not there or does not fit.
    """
    options, others = _parser().parse_known_args(args)
    words = ["fit", f"--config={options.config}", *further_words(others)]
    data = CommandLine().settings(words, whose="extract.py")["data"]
    module = RCAModule.load_from_checkpoint(options.ckpt_path, map_location="cpu", weights_only=True)
    for split in options.splits:
        path = options.out / f"{split}.pt"
        if path.is_file():
            print(f"{path}: is there already", flush=True)
            continue
        images = WSSSDataModule(**{**data, "eval_split": split, "num_workers": 0})
        images.setup("validate")
        samples = images.val_dataloader().dataset

        def told(done: int, total: int = len(samples), split: str = split) -> None:
            if done % 50 == 0 or done == total:
                print(f"{split}: {done} of {total} images", flush=True)

        extract(module, samples, options.scale, Path(options.ckpt_path).name, told).save(path)
        print(f"written to {path}", flush=True)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--config", required=True, help="configuration that the network was trained with")
    parser.add_argument("--ckpt_path", required=True, help="its checkpoint")
    parser.add_argument("--out", required=True, type=Path, help="folder for <split>.pt")
    parser.add_argument("--splits", type=lambda text: text.split(","), default=["train", "val"], help="as train,val")
    parser.add_argument("--scale", type=float, default=0.67, help="factor on the size of the photographs")
    return parser


if __name__ == "__main__":
    try:
        main()
    except RCAError as error:
        sys.exit(f"extract: {error}")
