"""Feature pyramid: the stages of a frozen backbone, each projected onto its principal components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from rca_lightning.backbones.base import Backbone, enlarge_to_whole_cells
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.projection import PCAProjection, project

_FINEST = 4  # pixels of a cell; of finer stages the maps are large and know little of objects


class FeaturePyramid(nn.Module):
    """The stages of a frozen backbone, from stride 4 on, each as the principal components of its own channels.

    Images are enlarged to whole cells of the coarsest level, so each of its cells is a whole number of finer ones. The
    components have to be learned once, see `learn_projections`; `FeatureCacheCallback` does it.

    Args:
        backbone: frozen from now on.
        channels: components of the stages, from fine to coarse; a stage with fewer channels keeps all. With fewer
            stages the last of these numbers are taken, with more stages the last of them are read.

    Attributes:
        projections: a `PCAProjection` for each level.
        channels: components `D_k` of each level.
        strides: pixels of the image per cell of each level.

    Shapes:
        images `(B, 3, H, W)` -> levels `(B, D_k, h_k, w_k)`.

    Raises:
        ArgumentError: for no channels, or a number below 1.

    Example:
        >>> from rca_lightning.backbones.build import build_backbone
        >>> pyramid = FeaturePyramid(build_backbone("resnet14", weights="none", output_stride=16), channels=(16, 32))
        >>> [tuple(level.shape) for level in pyramid(torch.zeros(1, 3, 64, 64))]
        [(1, 16, 8, 8), (1, 32, 4, 4)]
    """

    projections: Sequence[PCAProjection]

    def __init__(self, backbone: Backbone, channels: Sequence[int] = (48, 96, 256, 384)) -> None:
        super().__init__()
        if not channels or min(channels) < 1:
            raise ArgumentError("channels", tuple(channels), "give at least one number above 0")
        backbone.freeze_whole()
        self.backbone = backbone
        read = [stage for stage, stride in enumerate(backbone.stage_strides) if stride >= _FINEST][-len(channels) :]
        self.stages = read
        self.strides = [backbone.stage_strides[stage] for stage in read]
        widths = [backbone.stage_channels[stage] for stage in read]
        self.channels = [min(pair) for pair in zip(channels[-len(read) :], widths, strict=True)]
        made = [PCAProjection(width, kept) for width, kept in zip(widths, self.channels, strict=True)]
        self.projections = cast("Sequence[PCAProjection]", nn.ModuleList(made))
        self.memory_format = torch.channels_last
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> list[Tensor]:
        """Levels `(B, D_k, h_k, w_k)` of images `(B, 3, H, W)`, normalised as the backbone expects."""
        return self.project(self.features(images))

    def features(self, images: Tensor) -> list[Tensor]:
        """Outputs `(B, C_k, h_k, w_k)` of the stages, before projection."""
        whole = enlarge_to_whole_cells(images, max(self.strides))  # so that the levels lie on each other
        return self.backbone.last_maps(whole.contiguous(memory_format=self.memory_format), len(self.stages))

    def project(self, features: Sequence[Tensor]) -> list[Tensor]:
        """Levels of what `features` returns."""
        return project(self.projections, features)

    def relation_channels(self, cells: int) -> int:
        """None: a pyramid keeps no relations of cells."""
        return 0

    def feature_key(self) -> dict[str, object]:
        """What tells these features from those of another kind of network."""
        return {"kind": "pyramid", "channels": self.channels, "strides": self.strides}


class PyramidReader(nn.Module):
    """Base of the networks that read a feature pyramid: what they and `FeatureCacheCallback` need of it.

    A cache of the features of one pyramid serves all of its readers.

    Attributes:
        pyramid: gives the levels.
    """

    pyramid: FeaturePyramid

    @property
    def backbone(self) -> Backbone:
        """That of the pyramid."""
        return self.pyramid.backbone

    @property
    def projections(self) -> Sequence[PCAProjection]:
        """Those of the pyramid."""
        return self.pyramid.projections

    @property
    def strides(self) -> Sequence[int]:
        """Pixels of the image per cell of each level."""
        return self.pyramid.strides

    def features(self, images: Tensor) -> list[Tensor]:
        """Levels of images before projection; see `FeaturePyramid.features`."""
        return self.pyramid.features(images)

    def relation_channels(self, cells: int) -> int:
        """As those of the pyramid."""
        return self.pyramid.relation_channels(cells)

    def feature_key(self) -> dict[str, object]:
        """That of the pyramid."""
        return self.pyramid.feature_key()
