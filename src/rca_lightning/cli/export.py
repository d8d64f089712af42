"""The command `rca export`: writes a trained segmenter as a file that runs without this library."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rca_lightning.checkpoints.reading import read_checkpoint, task_of
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.export.onnx import require_onnx, save_onnx
from rca_lightning.export.program import save_program

_WRITERS = {".onnx": save_onnx, ".pt2": save_program}


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
    content = read_checkpoint(given.ckpt_path, map_location="meta")  # refused under the name that the argument has here
    from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
    from rca_lightning.modules.label_prediction import LabelPrediction
    from rca_lightning.modules.one_stage_module import OneStageModule
    from rca_lightning.modules.segmentation_module import SegmentationModule

    task = task_of(content["state_dict"])
    kinds: dict[str | None, type[LabelPrediction]] = {
        kind.task: kind for kind in (SegmentationModule, OneStageModule, FrozenSegmentationModule)
    }
    module = kinds.get(task, SegmentationModule).load_from_checkpoint(given.ckpt_path, map_location="cpu")
    try:
        _WRITERS[given.out.suffix](module.segmenter, module.class_names, given.out)
    except OSError as error:
        raise OutputError(f"out={str(given.out)!r} cannot be written ({error}); give another file") from error
    labels = len(module.class_names) + 1
    print(f"exported: {given.out} (images: RGB in [0, 1], any size; logits: {labels} labels, background first)")


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
    if out.suffix not in _WRITERS:
        raise ArgumentError("out", str(out), f"give a name that ends in {' or '.join(_WRITERS)}")
    if out.is_dir():
        raise ArgumentError("out", str(out), "this is a folder; give the name of a file in it")
    if out.suffix == ".onnx":
        require_onnx()
