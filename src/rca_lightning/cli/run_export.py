"""The work of `rca export`: reads a checkpoint, and writes its segmenter."""

from __future__ import annotations

from pathlib import Path

from rca_lightning.checkpoints.reading import read_checkpoint, task_of
from rca_lightning.errors import OutputError
from rca_lightning.export.onnx import require_onnx, save_onnx
from rca_lightning.export.program import save_program
from rca_lightning.io.progress import show_work
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.modules.label_prediction import LabelPrediction
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.segmentation_module import SegmentationModule

_WRITERS = {".onnx": save_onnx, ".pt2": save_program}


def run(ckpt_path: str, out: Path) -> None:
    """Writes the segmenter of a checkpoint, and prints one line about the file.

    Args:
        ckpt_path: the checkpoint.
        out: the file to write, `.onnx` or `.pt2`.

    Raises:
        RCAError: for checkpoints and networks that cannot be used, or a package that is missing.
    """
    if out.suffix == ".onnx":
        require_onnx()
    content = read_checkpoint(ckpt_path, map_location="meta")  # refused under the name that the argument has here
    task = task_of(content["state_dict"])
    kinds: dict[str | None, type[LabelPrediction]] = {
        kind.task: kind for kind in (SegmentationModule, OneStageModule, FrozenSegmentationModule)
    }
    module = kinds.get(task, SegmentationModule).load_from_checkpoint(ckpt_path, map_location="cpu")
    try:
        with show_work(f"writing {out}"):
            _WRITERS[out.suffix](module.segmenter, module.class_names, out)
    except OSError as error:
        raise OutputError(f"out={str(out)!r} cannot be written ({error}); give another file") from error
    labels = len(module.class_names) + 1
    print(f"exported: {out} (images: RGB in [0, 1], any size; logits: {labels} labels, background first)")
