"""The command `rca export`: writes a trained segmenter as a file that runs without this library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.cli.console import load
from rca_lightning.errors import ArgumentError

_ENDINGS = (".onnx", ".pt2")


def main(words: Sequence[str]) -> None:
    """Exports the segmenter of a checkpoint, and prints one line about the file.

    Args:
        words: what stands after `rca export`.

    Raises:
        RCAError: for arguments, checkpoints and networks that cannot be used, or a package that is missing.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    _check_out(given.out)
    load("rca_lightning.cli.run_export").run(given.ckpt_path, given.out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca export",
        description=(
            "Export a trained segmenter. The file takes RGB images in [0, 1] of any size, normalises them itself, "
            "and gives logits at their size; a description of both is in the file."
        ),
        allow_abbrev=False,
    )
    parser.add_argument("--ckpt_path", required=True, help="checkpoint of rca fit --task segment or one_stage")
    parser.add_argument(
        "--out", required=True, type=Path, help="file to write: .onnx for ONNX, .pt2 for a torch.export program"
    )
    return parser


def _check_out(out: Path) -> None:
    """Checks the file to write before the network is built."""
    if out.suffix not in _ENDINGS:
        raise ArgumentError("out", str(out), f"give a name that ends in {' or '.join(_ENDINGS)}")
    if out.is_dir():
        raise ArgumentError("out", str(out), "this is a folder; give the name of a file in it")
