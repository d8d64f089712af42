"""Exports a segmentation network to ONNX."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
from torch import nn

from rca_lightning.errors import require_extra
from rca_lightning.export.program import describe, export_program
from rca_lightning.io.atomic import write_atomically

# The one that torch's own translation is written in: no conversion follows, and older runtimes read it.
OPSET = 18
"""Version of the ONNX operators in the file."""


def require_onnx() -> ModuleType:
    """Imports onnx and checks that onnxscript is installed.

    Raises:
        MissingExtraError: one of them is missing.
    """
    require_extra("onnxscript", extra="export", needed_for="writing an ONNX file")
    return require_extra("onnx", extra="export", needed_for="writing an ONNX file")


def save_onnx(network: nn.Module, class_names: Sequence[str], path: Path) -> None:
    """Writes an `.onnx` file, checked by onnx, whole or not at all.

    Its input is `images (batch, 3, height, width)`, float32 RGB in `[0, 1]`, of any number and size; its output is
    `logits (batch, L + 1, height, width)`. What `describe` says stands in `metadata_props`.

    Args:
        network: see `export_program`.
        class_names: the L foreground classes.
        path: the file to write; one that is there is replaced.

    Raises:
        MissingExtraError: onnx or onnxscript is missing.
        OutputError: see `export_program`.
        OSError: the file cannot be written.

    Example:
        With onnxruntime, for a photograph `(H, W, 3)` of bytes::

            session = onnxruntime.InferenceSession("segmenter.onnx")
            images = (photograph / 255).astype("float32").transpose(2, 0, 1)[None]
            labels = session.run(None, {"images": images})[0].argmax(1)[0]  # (H, W)
            names = json.loads(session.get_modelmeta().custom_metadata_map["labels"])
    """
    onnx = require_onnx()
    program = export_program(network)
    with _quiet():
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=OPSET,
            input_names=["images"],
            output_names=["logits"],
            dynamic_shapes={"images": {0: "batch", 2: "height", 3: "width"}},
            verbose=False,
        )
    assert exported is not None  # as always where `dynamo` is set
    content = exported.model_proto
    for key, value in describe(class_names).items():
        content.metadata_props.add(key=key, value=value)
    onnx.checker.check_model(content, full_check=True)
    write_atomically(path, lambda file: file.write(content.SerializeToString()))


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings of torch.onnx about operators of torchvision, which no network here has."""
    exporter = logging.getLogger("torch.onnx")
    level = exporter.level
    exporter.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of torch about torch
            yield
    finally:
        exporter.setLevel(level)
