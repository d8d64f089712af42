"""Exports a segmentation network, with the normalisation of its input, as a `torch.export` program."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import OutputError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.version import __version__


class Segmenter(nn.Module):
    """Normalises RGB images, runs a segmentation network and enlarges its logits to the size of the images.

    Args:
        network: normalised images `(B, 3, H, W)` -> logits `(B, L + 1, h, w)`.

    Shapes:
        images `(B, 3, H, W)` float32, RGB in `[0, 1]` -> logits `(B, L + 1, H, W)` float32. Label 0 is the background,
        1..L are the classes; a softmax over the second dimension gives probabilities.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """Logits `(B, L + 1, H, W)` of images `(B, 3, H, W)` in `[0, 1]`."""
        logits = self.network((images - self.mean) / self.std).float()
        return F.interpolate(logits, size=images.shape[2:], mode="bilinear", align_corners=False)


def describe(class_names: Sequence[str]) -> dict[str, str]:
    """Describes input and output of an exported file as text for its metadata; lists are JSON.

    Args:
        class_names: the L foreground classes.

    Returns:
        `labels` (names of the L + 1 channels of the logits, the background first), `input_layout`, `channel_order`,
        `input_range`, `normalisation` (that it is done inside), `mean`, `std`, `output` and `producer`.
    """
    return {
        "labels": json.dumps(["background", *class_names]),
        "input_layout": "images (batch, 3, height, width) float32, of any size",
        "channel_order": "RGB",
        "input_range": json.dumps([0.0, 1.0]),
        "normalisation": "inside the file: (images - mean) / std; do not normalise before",
        "mean": json.dumps(IMAGENET_MEAN),
        "std": json.dumps(IMAGENET_STD),
        "output": "logits (batch, label, height, width) float32 at the size of the input; the greatest is the label",
        "producer": f"rca_lightning {__version__}",
    }


DESCRIPTION_FILE = "description.json"
"""Name under which a `.pt2` file holds what `describe` says."""

# Sides that no stride divides: a graph made from them cannot rest on a division without remainder.
_TRACED = (2, 3, 97, 131)
_TRIED = (1, 3, 74, 61)
_TOLERANCE = 1e-3


def export_program(network: nn.Module) -> ExportedProgram:
    """Traces a segmentation network together with the normalisation and the enlargement of its logits.

    The program is compared with the network at another size before it is returned.

    Args:
        network: normalised images `(B, 3, H, W)` -> logits `(B, L + 1, h, w)`, in float32. It is traced in evaluation
            mode, on the device where it is, and left in the mode it was in.

    Returns:
        A program with the input `images (B, 3, H, W)`, float32 RGB in `[0, 1]`, of any number and size, and the output
        `(B, L + 1, H, W)`; see `Segmenter`. It may refuse images of fewer pixels a side than two cells of the features.

    Raises:
        OutputError: the network cannot be traced, does not serve every size, or the program answers otherwise.
    """
    segmenter = Segmenter(network).to(next(network.parameters()).device)
    training = network.training
    segmenter.eval()
    try:
        with torch.no_grad():
            program = _traced(segmenter, _example(_TRACED, segmenter))
            _compare(program, segmenter, _example(_TRIED, segmenter))
    finally:
        network.train(training)
    return program


def save_program(network: nn.Module, class_names: Sequence[str], path: Path) -> None:
    """Writes a `.pt2` file, whole or not at all.

    Args:
        network: see `export_program`.
        class_names: the L foreground classes.
        path: the file to write; one that is there is replaced.

    Raises:
        OutputError: see `export_program`.
        OSError: the file cannot be written.

    Example:
        >>> import torch
        >>> save_program(torch.nn.Conv2d(3, 2, 1), ["cat"], Path("segmenter.pt2"))
        >>> files = {"description.json": ""}  # filled by reading
        >>> program = torch.export.load("segmenter.pt2", extra_files=files)
        >>> json.loads(json.loads(files["description.json"])["labels"])
        ['background', 'cat']
        >>> program.module()(torch.rand(1, 3, 61, 97)).shape
        torch.Size([1, 2, 61, 97])
    """
    program = export_program(network)
    extra = {DESCRIPTION_FILE: json.dumps(describe(class_names), indent=2)}
    write_atomically(path, lambda file: torch.export.save(program, file, extra_files=extra))


def _example(shape: tuple[int, ...], segmenter: Segmenter) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(segmenter.mean.device)


def _traced(segmenter: Segmenter, example: Tensor) -> ExportedProgram:
    free = {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO}
    try:
        return torch.export.export(segmenter, (example,), dynamic_shapes={"images": free}, strict=False)
    except Exception as error:  # torch has many kinds of errors for code that is no graph
        raise _refusal(segmenter, f"cannot be traced ({_first_line(error)})") from error


def _compare(program: ExportedProgram, segmenter: Segmenter, images: Tensor) -> None:
    try:
        logits = program.module()(images)
    except Exception as error:  # a size that torch could not leave open it fixes without a word
        raise _refusal(segmenter, f"does not serve every size ({_first_line(error)})") from error
    difference = float((logits - segmenter(images)).abs().max())
    if not difference <= _TOLERANCE:
        raise _refusal(segmenter, f"answers otherwise once exported, by up to {difference:g}")


def _refusal(segmenter: Segmenter, problem: str) -> OutputError:
    name = type(segmenter.network).__name__
    return OutputError(f"the network {name} {problem}; export a network of another backbone or head")


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0].strip() or type(error).__name__
