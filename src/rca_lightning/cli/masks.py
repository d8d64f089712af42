"""The command `rca masks`: from a folder of tagged photographs to a mask of each."""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, get_args

from rca_lightning.backbones.registry import StrideIn
from rca_lightning.cli.console import load
from rca_lightning.cli.run_folder import Part
from rca_lightning.errors import ArgumentError, require_extra
from rca_lightning.io.listing import require_folder

_CRF_THRESHOLD = 0.4  # the best one of VOC photographs before a dense CRF; without, the default of the library
_REFINE = ("auto", "dense_crf", "pamr", "none")


def main(words: Sequence[str]) -> None:
    """Label the photographs of a folder.

    Args:
        words: what stands after `rca masks`.

    Raises:
        RCAError: for arguments, folders and files that cannot be used.
        SystemExit: for words that cannot be parsed, after `--help`, and when it is interrupted.
    """
    given = _parser().parse_args(list(words))
    _check(given)
    load("rca_lightning.cli.run_masks").run(given, ["rca", "masks", *words])


def _check(given: argparse.Namespace) -> None:
    """Checks the words, and puts in what those stand for that leave the choice to the library."""
    require_folder(given.photographs, what="photographs", remedy="give the folder that holds your photographs")
    if given.masks is not None:
        require_folder(given.masks, what="masks", remedy="give the folder of index masks to score with")
    if given.out.resolve() == given.photographs.resolve():
        raise ArgumentError("out", str(given.out), "these are the photographs; give another folder for the masks")
    has_crf = importlib.util.find_spec("pydensecrf") is not None
    if given.refine == "auto":
        given.refine = "dense_crf" if has_crf else "pamr"
    given.refine = () if given.refine == "none" else (given.refine,)
    if given.refine == ("dense_crf",):
        require_extra("pydensecrf.densecrf", extra="crf", needed_for="--refine dense_crf")
    given.threshold_source = {None: "default", "auto": "auto"}.get(given.threshold, "given")
    if given.threshold is None and given.refine == ("dense_crf",):
        given.threshold = _CRF_THRESHOLD
    if isinstance(given.threshold, float) and not 0 <= given.threshold <= 1:
        raise ArgumentError("threshold", given.threshold, "give a number in [0, 1], or auto")
    if given.max_side < 64:
        raise ArgumentError("max_side", given.max_side, "give at least 64 pixels")
    given.shard = None if given.shard is None else Part.parse(given.shard)


def _threshold(text: str) -> float | str:
    if text == "auto":
        return text
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number in [0, 1], or auto") from None


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"rca: {message}\nSee: rca masks --help\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="rca masks",
        usage="rca masks PHOTOGRAPHS --out FOLDER [options]",
        description="From photographs and tags to masks. Tags come from tags.csv (image,tags), one subfolder a class, "
        "or keywords (XMP, IPTC). Stopped anywhere, the same command goes on; only new photographs are computed.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=22, width=100),
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("photographs", type=Path, metavar="PHOTOGRAPHS", help="their folder")
    add = parser.add_argument_group("options").add_argument
    add("--out", type=Path, required=True, metavar="FOLDER", help="for labels, overlays, report.html, the model")
    add("--tags", metavar="FILE", help="tags, .csv (image,tags) or .txt (image tag tag)")
    add("--classes", metavar="FILE", help="classes, one a line (default: classes.txt, else the tags, sorted)")
    add("--masks", type=Path, metavar="FOLDER", help="true masks, PNG by photograph, to score with")
    add("--weights", default="imagenet", metavar="WHICH", help="of the backbone: a name or a file (default: imagenet)")
    add("--backbone", default="resnet50", metavar="NAME", help="resnet50 (default), resnet101, vgg16, ...")
    add("--stride-in", choices=get_args(StrideIn), metavar="1x1", help="1x1 for files of ResNet v1")
    add(
        "--max-side", type=int, default=768, metavar="PIXELS", help="larger photographs are read smaller (default: 768)"
    )
    add("--threshold", type=_threshold, metavar="SHARE",
        help="background below it (default: 0.4 with dense_crf, else 0.5); auto: chosen without masks")  # fmt: skip
    add("--refine", default="auto", choices=_REFINE, metavar="HOW", help="dense_crf (default if installed), pamr, none")
    add("--maps", action="store_true", help="leave the maps of the classes in maps/ too")
    add("--segmenter", action="store_true", help="learn masks too, and draw photographs without tags by that")
    add("--refit", action="store_true", help="learn from new photographs and tags, and make all labels anew")
    add("--shard", metavar="I/N", help="work on part I of N only, beside the other parts (page: Long runs)")
    add("--seed", type=int, default=0, metavar="N", help="of the order of photographs (default: 0)")
    add("-h", "--help", action="help", help="show this and end")
    return parser
