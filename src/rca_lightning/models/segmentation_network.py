"""The segmentation network: a backbone and a DeepLab head."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError
from rca_lightning.models.backbone import Backbone
from rca_lightning.models.deeplab import DeepLabV2Head, DeepLabV3PlusHead

HeadName = Literal["deeplabv2", "deeplabv3plus"]

_LOW_LEVEL_STRIDE = 4  # pixels a cell of the early stage that the decoder of v3+ reads
_PROBE_SIDE = 64


class SegmentationNetwork(nn.Module):
    """Logits of every label at every cell.

    The dilations of a head are those of its paper in pixels: in cells they shrink with a larger output stride.

    Args:
        backbone: gives the features.
        head: "deeplabv2" gives logits at the output stride of the backbone, "deeplabv3plus" at that of an early stage,
            a quarter of the image's size.
        num_labels: `L + 1`, the background among them.
        channels_last: memory layout of the convolutions.

    Raises:
        ArgumentError: if the head is unknown, or "deeplabv3plus" meets a backbone whose stages are not known.
    """

    def __init__(self, backbone: Backbone, head: HeadName, num_labels: int, *, channels_last: bool = False) -> None:
        super().__init__()
        if head not in get_args(HeadName):
            raise ArgumentError("head", head, f"give one of {', '.join(get_args(HeadName))}")
        self.backbone = backbone
        self.stages = 1  # how many of the last ones the head reads
        self.head: nn.Module
        stride = backbone.output_stride
        if head == "deeplabv2":
            rates = [max(1, round(rate * 8 / stride)) for rate in (6, 12, 18, 24)]
            self.head = DeepLabV2Head(backbone.num_features, num_labels, rates=rates)
        else:
            self.stages, low_channels = _early_stage(backbone)
            rates = [max(1, round(rate * 16 / stride)) for rate in (6, 12, 18)]
            self.head = DeepLabV3PlusHead(backbone.num_features, low_channels, num_labels, rates=rates)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images.

        Args:
            images: `(B, 3, H, W)`, normalised as the backbone expects.

        Returns:
            `(B, L + 1, h, w)`, label 0 the background.
        """
        images = images.contiguous(memory_format=self.memory_format)
        logits: Tensor = self.head(self.backbone.last_stages(images, self.stages))
        return logits


@torch.no_grad()
def _early_stage(backbone: Backbone) -> tuple[int, int]:
    """Position from the end and channels of the first stage whose cells are as coarse as the decoder wants them."""
    if backbone.num_stages > 1:
        training = backbone.training
        backbone.eval()
        maps = backbone.last_stages(torch.zeros(1, 3, _PROBE_SIDE, _PROBE_SIDE), backbone.num_stages)
        backbone.train(training)
        for index, stage in enumerate(maps[:-1]):
            if stage.shape[3] * _LOW_LEVEL_STRIDE <= _PROBE_SIDE:
                return len(maps) - index, stage.shape[1]
    name = type(backbone).__name__
    raise ArgumentError("head", "deeplabv3plus", f"{name} has no known early stages to refine with; give 'deeplabv2'")
