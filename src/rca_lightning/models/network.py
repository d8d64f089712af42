"""The RCA network: backbone, CAM heads and semantic aggregation, without any training logic."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from rca_lightning.models.aggregation import SemanticAggregation
from rca_lightning.models.backbone import Backbone
from rca_lightning.models.cam import CAMHead, image_logits, max_normalise

FinalMap = Literal["coarse", "refined", "mean", "attention"]
AttentionClasses = Literal["all", "tags"]
RegionMap = Literal["coarse", "attention"]


@dataclass
class ActivationMaps:
    """What the network computes of B images.

    Attributes:
        embeddings: what regions are pooled from and prototypes compared with, `(B, D, H, W)`.
        coarse: `P`, maps of the first CAM head, `(B, L, H, W)`.
        refined: `P^`, maps of the second head on `[F', F]`, `(B, L, H, W)`; `None` without aggregation.
        attention: attention summed over the prototypes of a class, `(B, L, H, W)`; `None` without aggregation.
    """

    embeddings: Tensor
    coarse: Tensor
    refined: Tensor | None = None
    attention: Tensor | None = None

    def read(self, final_map: FinalMap) -> Tensor:
        """Non-negative maps `(B, L, H, W)` to draw masks from; the coarse ones where nothing was aggregated."""
        coarse = self.coarse.float().clamp_min(0)
        if final_map == "coarse" or self.refined is None or self.attention is None:
            return coarse
        if final_map == "attention":
            return self.attention.float()
        refined = self.refined.float().clamp_min(0)
        if final_map == "refined":
            return refined
        return (max_normalise(coarse) + max_normalise(refined)) / 2

    def located(self, region_map: RegionMap) -> Tensor:
        """Maps `(B, L, H, W)` that regions are cut from, detached.

        The attention where it is asked for; of a class that has no prototype yet, the coarse map.
        """
        coarse = self.coarse.detach()
        if region_map == "coarse" or self.attention is None:
            return coarse
        attention = self.attention.detach()
        return torch.where(attention.amax(dim=(2, 3), keepdim=True) > 0, attention.to(coarse.dtype), coarse)


class RCANetwork(nn.Module):
    """Backbone, first CAM head and, with an `aggregation`, attention over prototypes and a second CAM head.

    Args:
        backbone: gives `F (B, C, H, W)`.
        num_classes: foreground classes `L`.
        embedding_dim: `D`, channels of a 1x1 projection that regions and prototypes live in; `None`:
            they live in the features themselves.
        aggregation: reads the prototypes; `None`: plain CAM.
        attention_classes: whether a pixel may read all classes or the tags of its image.
        standardize: whether embeddings have mean 0 and variance 1 in every channel. Features behind a ReLU are
            positive, so their cosines are all high and say little; around their mean they point apart.
        channels_last: whether convolutions run with the channels as innermost dimension, which is what tensor
            cores and bf16 units of CPUs want.
    """

    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        embedding_dim: int | None = None,
        aggregation: SemanticAggregation | None = None,
        attention_classes: AttentionClasses = "all",
        standardize: bool = True,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        channels = backbone.num_features
        self.backbone = backbone
        self.projection = nn.Conv2d(channels, embedding_dim, 1, bias=False) if embedding_dim else None
        self.standardization = nn.BatchNorm2d(embedding_dim or channels, affine=False) if standardize else None
        self.coarse_head = CAMHead(channels, num_classes)
        self.aggregation = aggregation
        self.refined_head = CAMHead(channels + (embedding_dim or channels), num_classes) if aggregation else None
        self.attention_classes = attention_classes
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor, tags: Tensor | None = None) -> ActivationMaps:
        """Maps of images.

        Args:
            images: `(B, 3, H, W)`, normalised as the backbone expects.
            tags: `(B, L)`; which classes may be read with `attention_classes="tags"`. Where they are
                unknown (`None`) the classes with an image probability above one half stand in.
        """
        features = self.backbone(images.contiguous(memory_format=self.memory_format))
        embeddings = features if self.projection is None else self.projection(features)
        if self.standardization is not None:
            embeddings = self.standardization(embeddings)
        coarse = self.coarse_head(features)
        if self.aggregation is None or self.refined_head is None:
            return ActivationMaps(embeddings, coarse)
        readable = None
        if self.attention_classes == "tags":
            readable = tags if tags is not None else (image_logits(coarse) > 0)
        read = self.aggregation(embeddings, readable)
        # Prototypes are unit vectors: with the length of the pixel both halves of F^ have one scale.
        length = embeddings.detach().norm(dim=1, keepdim=True)
        completed = torch.cat([read.context * length, features], dim=1)  # (B, D + C, H, W)
        attention = read.class_attention[:, : coarse.shape[1]]
        return ActivationMaps(embeddings, coarse, self.refined_head(completed), attention)
