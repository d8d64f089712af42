"""The command `rca check`: results are looked through before they are uploaded."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.data.classes import VOC_CLASSES
from rca_lightning.data.tag_files import read_id_list
from rca_lightning.errors import ArgumentError, OutputError, refuse_other_classes
from rca_lightning.io.output_folder import stored_classes
from rca_lightning.submission.coco import check_coco
from rca_lightning.submission.voc import check_ending, check_voc, pack

_NEEDED = {"voc2012": ("ids", "root"), "coco": ("annotations",)}
_ALLOWED = {"voc2012": ("ids", "root", "num_classes", "pack"), "coco": ("annotations",)}


def main(words: Sequence[str]) -> None:
    """Check results, print one line if nothing is wrong, and only then pack them.

    Args:
        words: what stands after `rca check`.

    Raises:
        ResultsError: a list of what is wrong.
        RCAError: for other files and arguments that cannot be used.
        SystemExit: for words that cannot be parsed, and after `--help`.
    """
    given = _parser().parse_args(list(words))
    _check_arguments(given)
    if given.layout == "coco":
        print(check_coco(given.results, given.annotations))
        return
    if given.pack is not None:
        check_ending(given.pack)
    ids = read_id_list(given.ids, what="ids")
    num_classes = len(VOC_CLASSES) if given.num_classes is None else given.num_classes
    if given.num_classes is None:
        remedy = "predict with a network that learned the classes in the order of the server, or give --num_classes"
        names = stored_classes(given.results / "results")
        refuse_other_classes(names, VOC_CLASSES, where="the results", here="VOC 2012", remedy=remedy)
    print(check_voc(given.results, ids, given.root, num_classes=num_classes))
    if given.pack is not None:
        try:
            pack(given.results, ids, given.pack)
        except OSError as error:
            raise OutputError(f"pack={str(given.pack)!r} cannot be written ({error}); give another file") from error
        print(f"packed: {given.pack}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rca check",
        description="Look through results before they are uploaded: names, sizes and values.",
        allow_abbrev=False,
    )
    parser.add_argument("--layout", required=True, choices=tuple(_NEEDED), help="which server's form the results have")
    parser.add_argument(
        "--results",
        required=True,
        type=Path,
        help="voc2012: the folder that holds results/VOC2012; coco: the results JSON",
    )
    voc = parser.add_argument_group("voc2012")
    voc.add_argument("--ids", type=Path, help="text file with the ids of the split, one a line")
    voc.add_argument("--root", type=Path, help="folder of the data set, with the photographs in JPEGImages")
    voc.add_argument("--num_classes", type=int, help=f"foreground classes (default: {len(VOC_CLASSES)})")
    voc.add_argument("--pack", type=Path, help="archive to write if nothing is wrong, such as results.tgz")
    coco = parser.add_argument_group("coco")
    coco.add_argument("--annotations", type=Path, help="instances or image_info JSON of the split")
    return parser


def _check_arguments(given: argparse.Namespace) -> None:
    for name in _NEEDED[given.layout]:
        if getattr(given, name) is None:
            raise ArgumentError(name, None, f"give --{name}; --layout {given.layout} needs it")
    for names in _ALLOWED.values():
        for name in names:
            if getattr(given, name) is not None and name not in _ALLOWED[given.layout]:
                raise ArgumentError(name, str(getattr(given, name)), f"--layout {given.layout} has no use for it")
    if given.num_classes is not None and not 1 <= given.num_classes <= 254:
        raise ArgumentError("num_classes", given.num_classes, "give a number from 1 to 254")
