"""Boundary network: where objects end, read from a feature pyramid."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError
from rca_lightning.segmentation.pyramid import FeaturePyramid, PyramidReader

_GROUPS = 4  # of GroupNorm
_EPS = 1e-5


class LevelStandardization(nn.Module):
    """Subtracts a mean from each channel and divides by a deviation, which are set once and never trained.

    Args:
        channels: `D`.

    Shapes:
        `(B, D, h, w)` -> `(B, D, h, w)`.
    """

    mean: Tensor
    variance: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("variance", torch.ones(channels))

    def forward(self, level: Tensor) -> Tensor:
        """The level with mean 0 and variance 1 in every channel."""
        scale = (self.variance + _EPS).rsqrt()[:, None, None]
        return (level.to(self.mean.dtype) - self.mean[:, None, None]) * scale


class BoundaryNetwork(PyramidReader):
    """Boundary branch of IRN (Ahn, Cho & Kwak, CVPR 2019, arXiv 1904.05044) on the levels of a feature pyramid.

    Each level is standardised, reduced to `width` channels by a 1x1 convolution, normalised by GroupNorm, and enlarged
    to the grid of the finest one; one more 1x1 convolution and a sigmoid read the boundary.

    Args:
        pyramid: its backbone is frozen.
        width: channels of each level after reduction, a multiple of 4.

    Shapes:
        images `(B, 3, H, W)` -> boundary `(B, h, w)` in `[0, 1]`, on the grid of the finest level.

    Raises:
        ArgumentError: for a width that is no multiple of 4.

    Example:
        >>> from rca_lightning.backbones.build import build_backbone
        >>> pyramid = FeaturePyramid(build_backbone("resnet14", weights="none", output_stride=16), channels=(8, 16, 32))
        >>> tuple(BoundaryNetwork(pyramid)(torch.zeros(1, 3, 64, 80)).shape)
        (1, 16, 20)
    """

    def __init__(self, pyramid: FeaturePyramid, width: int = 32) -> None:
        super().__init__()
        if width < 1 or width % _GROUPS:
            raise ArgumentError("width", width, f"give a multiple of {_GROUPS}")
        self.pyramid = pyramid
        self.standardizations = nn.ModuleList(LevelStandardization(channels) for channels in pyramid.channels)
        self.branches = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1, bias=False), nn.GroupNorm(_GROUPS, width), nn.ReLU())
            for channels in pyramid.channels
        )
        self.boundary = nn.Conv2d(width * len(pyramid.channels), 1, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Boundary `(B, h, w)` of images `(B, 3, H, W)`, normalised as the backbone expects."""
        return self.read(self.pyramid(images))

    def read(self, levels: Sequence[Tensor]) -> Tensor:
        """Boundary `(B, h, w)` of levels `(B, D_k, h_k, w_k)`, from fine to coarse."""
        size = levels[0].shape[2:]
        reduced = [
            F.interpolate(branch(standardize(level)), size, mode="bilinear", align_corners=False)
            for branch, standardize, level in zip(self.branches, self.standardizations, levels, strict=True)
        ]
        return self.boundary(torch.cat(reduced, dim=1))[:, 0].float().sigmoid()  # type: ignore[no-any-return]
