"""What is exported: a network with the preparation of its input, and a description of both."""

from __future__ import annotations

import json
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.data.transforms import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.version import __version__


class Segmenter(nn.Module):
    """A segmentation network that takes plain RGB images and answers at their size.

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
    """What a user of the file must know, as text that goes into it; lists are JSON.

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
