"""Stands where the backbone was: its images are features already."""

from __future__ import annotations

from torch import Tensor, nn

from rca_lightning.backbones.base import Backbone
from rca_lightning.errors import ArgumentError


class CachedBackbone(Backbone):
    """Takes features `(B, D, h, w)` of all kept stages apart again.

    Args:
        widths: channels of each stage, the features' last.
        output_stride: of the network that they come from.
    """

    def __init__(self, widths: list[int], output_stride: int) -> None:
        super().__init__()
        self.widths = widths
        self.num_features = widths[-1]
        self.output_stride = output_stride

    def forward(self, images: Tensor) -> Tensor:
        return images[:, -self.num_features :]

    def stages(self) -> list[list[nn.Module]]:
        return []

    def last_stages(self, images: Tensor, count: int) -> list[Tensor]:
        return list(images.split(self.widths, dim=1))[-count:]

    def stage_channels(self, count: int) -> list[int]:
        if not 1 <= count <= len(self.widths):
            raise ArgumentError("embedding_stages", count, f"the cached features have 1 to {len(self.widths)}")
        return self.widths[-count:]
