"""The RCA network: backbone, CAM heads and semantic aggregation."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import ATTENTION_LAYERS, Backbone, PaddingMode
from rca_lightning.backbones.build import OutputStride, build_backbone
from rca_lightning.backbones.registry import StrideIn
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.aggregation import SemanticAggregation, fused_aggregation, pixel_lengths
from rca_lightning.rca.cam import CAMHead, PromptHead, class_maps, image_logits, max_normalise, predicted_classes
from rca_lightning.rca.projection import PCAProjection, are_learned
from rca_lightning.rca.propagation import PropagationAffinity, propagate_by
from rca_lightning.rca.standardization import Standardization, concat_stages

FinalMap = Literal["coarse", "refined", "mean", "attention"]
AttentionClasses = Literal["all", "tags"]
Projection = Literal["learned", "pca"]
RegionMap = Literal["coarse", "attention"]

_CELLS_OF_EVIDENCE = 50  # of which one says what an image shows
_PCA_CHANNELS = 256


@dataclass
class ActivationMaps:
    """What the network computes of B images.

    Attributes:
        embeddings: what regions are pooled from and prototypes compared with, `(B, D, H, W)`.
        coarse: `P`, maps of the first CAM head, `(B, L, H, W)`.
        refined: `P^`, maps of the second head on `[F', F]`, `(B, L, H, W)`; `None` without that head.
        attention: attention summed over the prototypes of a class, `(B, L, H, W)`; `None` without aggregation.
        has_prototype: `(L,)` bool, which classes have a prototype; `None`: all that have attention.
        relation: relations of cells to a transformer, see `Backbone.maps_and_relation`; `None` where propagation is by
            cosines.
        propagation_affinity: what propagation is by.
    """

    embeddings: Tensor
    coarse: Tensor
    refined: Tensor | None = None
    attention: Tensor | None = None
    has_prototype: Tensor | None = None
    relation: Tensor | None = field(default=None, init=False)
    propagation_affinity: PropagationAffinity = field(default="cosine", init=False)

    def propagate(self, maps: Tensor, *, power: float, steps: int) -> Tensor:
        """Propagates maps `(B, K, H, W)` over like cells of their image; see `propagate_by`."""
        kind, embeddings = self.propagation_affinity, self.embeddings.detach()
        return propagate_by(kind, maps, embeddings, self.relation, power=power, steps=steps)

    @check_arguments
    def final_cam(self, final_map: FinalMap) -> Tensor:
        """Returns the named map `(B, L, H, W)`, non-negative; where it is missing, the refined or coarse one.

        With "attention" a class that has no prototype has its coarse map.
        """
        coarse = self.coarse.float().clamp_min(0)
        if final_map == "attention" and self.attention is not None:
            return self._attention_or(coarse, self.attention.float())
        if final_map == "coarse" or self.refined is None:
            return coarse
        refined = self.refined.float().clamp_min(0)
        if final_map != "mean":
            return refined
        return (max_normalise(coarse) + max_normalise(refined)) / 2

    @check_arguments
    def region_cam(self, region_map: RegionMap) -> Tensor:
        """Returns the maps `(B, L, H, W)` that regions are cut from, detached.

        With "attention" a class that has no prototype yet has its coarse map.
        """
        coarse = self.coarse.detach()
        if region_map == "coarse" or self.attention is None:
            return coarse
        return self._attention_or(coarse, self.attention.detach())

    def _attention_or(self, coarse: Tensor, attention: Tensor) -> Tensor:
        if self.has_prototype is None:
            return attention
        return torch.where(self.has_prototype[:, None, None], attention.to(coarse.dtype), coarse)


class RCANetwork(nn.Module):
    """Backbone, first CAM head and, with an `aggregation`, attention over prototypes and a second CAM head.

    Args:
        backbone: gives `F (B, C, H, W)`.
        num_classes: foreground classes `L`.
        embedding_dim: `D`, channels of a 1x1 projection that regions and prototypes live in; `None`:
            they live in the features themselves.
        embedding_stages: how many of the last stages of the backbone embeddings are made of, each with the same
            weight. The last one knows the class, the one before the parts.
        aggregation: reads the prototypes; `None`: plain CAM.
        projection: "learned" by the losses, or "pca": a `PCAProjection` of the standardised stages, which the CAM heads
            read too; it has to learn its components once, see `learn_projections`.
        context: another source of what pixels read, for comparison: a module with `context_channels` and
            `forward(features, coarse, tags)` that gives `(B, context_channels, H, W)`.
        second_head: whether a second CAM head reads the context. Without, prototypes serve the attention alone.
        attention_classes: whether a pixel may read all classes or the tags of its image.
        standardize: whether embeddings have mean 0 and variance 1 in every channel, see `Standardization`. Features
            behind a ReLU are positive, so their cosines are all high and say little; around their mean they point
            apart.
        channels_last: whether convolutions run with the channels as innermost dimension, which is what tensor
            cores and bf16 units of CPUs want.
        fused: whether the second head reads the prototypes by `fused_aggregation`, which gives the same maps
            without making `F'`.
        num_prompts: of a first head that is a `PromptHead`; `None`: a `CAMHead`.
        propagation_affinity: what makes cells of an image alike where maps are propagated: the "cosine" of their
            embeddings, or to a transformer its "attention" or the cosine of its "keys". While the backbone is not in
            training, relations of cells then come with the stages, as further channels of the last: `stages`,
            `features` and `split`.
    """

    stage_weights: Tensor

    @check_arguments
    def __init__(
        self,
        backbone: Backbone,
        num_classes: int,
        *,
        embedding_dim: int | None = None,
        embedding_stages: int = 1,
        projection: Projection = "learned",
        aggregation: SemanticAggregation | None = None,
        context: nn.Module | None = None,
        second_head: bool = True,
        attention_classes: AttentionClasses = "tags",
        standardize: bool = True,
        channels_last: bool = False,
        fused: bool = False,
        num_prompts: int | None = None,
        propagation_affinity: PropagationAffinity = "cosine",
    ) -> None:
        super().__init__()
        if propagation_affinity != "cosine":
            backbone.check_affinity()
        self.propagation_affinity = propagation_affinity
        channels = backbone.num_features
        self.backbone = backbone
        available = len(backbone.stage_channels)
        if not 1 <= embedding_stages <= available:
            remedy = f"{type(backbone).__name__} offers 1 to {available}"
            raise ArgumentError("embedding_stages", embedding_stages, remedy)
        widths = backbone.stage_channels[-embedding_stages:]
        self.embedding_stages = embedding_stages
        learned = embedding_dim is not None and projection == "learned"
        self.projection = nn.Conv2d(sum(widths), embedding_dim, 1, bias=False) if embedding_dim and learned else None
        # Of two stages the one with more channels would decide every cosine.
        weights = torch.cat([torch.full((width,), (channels / width) ** 0.5) for width in widths])
        self.pca = PCAProjection(sum(widths), embedding_dim, weights) if embedding_dim and not learned else None
        embedded = embedding_dim or sum(widths)
        self.standardization = Standardization(embedded) if standardize and self.pca is None else None
        weights = torch.ones(embedded) if embedding_dim else weights
        channels = embedded if self.pca is not None else channels
        self._last_channels = channels
        self.register_buffer("stage_weights", weights[:, None, None], persistent=False)
        centred = self.pca is not None
        self.coarse_head: CAMHead | PromptHead
        if num_prompts is None:
            self.coarse_head = CAMHead(channels, num_classes, bias=centred)
        else:
            self.coarse_head = PromptHead(num_classes, num_prompts, channels)
        self.aggregation = aggregation
        self.context = context
        read = cast(int, context.context_channels) if context else embedded if aggregation else None
        has_second = read is not None and second_head
        if num_prompts is not None and has_second:
            raise ArgumentError("num_prompts", num_prompts, "a head of prompts has no second one; give beta=0")
        self.refined_head = CAMHead(channels + (read or 0), num_classes, bias=centred) if has_second else None
        self.attention_classes = attention_classes
        self.fused = fused
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor, tags: Tensor | None = None) -> ActivationMaps:
        """Computes the maps of images: `read` of the `stages`.

        Args:
            images: `(B, 3, H, W)`, normalised as the backbone expects.
            tags: as for `read`.
        """
        return self.read(self.stages(images), tags)

    def stages(self, images: Tensor) -> list[Tensor]:
        """What maps are read from, for images `(B, 3, H, W)`.

        Returns:
            Outputs `(B, C, h, w)` of the last `embedding_stages` stages of the backbone; with a PCA their projection
            `(B, D, h, w)` alone. Relations of cells, if there are any, follow the channels of the last.
        """
        outputs, relation = self.outputs_and_relation(images, self.embedding_stages)
        return _join(self.stages_of(outputs), relation)

    def features(self, images: Tensor) -> list[Tensor]:
        """What a projection reads: one map `(B, C, h, w)`, the `embedding_stages` stages on the grid of the last.

        Relations of cells, if there are any, follow these channels; no projection reads them.
        """
        outputs, relation = self.outputs_and_relation(images, self.embedding_stages)
        return _join([concat_stages(_on_last_grid(outputs))], relation)

    @property
    def projections(self) -> list[PCAProjection]:
        """The projections of `features`: the PCA, if there is one."""
        return [] if self.pca is None else [self.pca]

    @property
    def strides(self) -> list[int]:
        """Pixels of the image per cell of `features`."""
        return [self.backbone.output_stride]

    def feature_key(self) -> dict[str, object]:
        """What tells `features` of one backbone from those of another kind of network; plain ones came first."""
        kind = self.propagation_affinity
        layers = {"attention_layers": ATTENTION_LAYERS} if kind == "attention" else {}
        return {} if kind == "cosine" else {"propagation_affinity": kind, **layers}

    def relation_channels(self, cells: int) -> int:
        """Channels of the relations of an image of so many cells, about; 0 where propagation is by cosines."""
        return {"cosine": 0, "attention": cells, "keys": self.backbone.key_channels}[self.propagation_affinity]

    def outputs(self, images: Tensor, last: int | None = None) -> list[Tensor]:
        """Outputs `(B, C, h, w)` of the last stages of the backbone, by default of all, for images `(B, 3, H, W)`."""
        images = images.contiguous(memory_format=self.memory_format)
        outputs: list[Tensor] = self.backbone(images) if last is None else self.backbone.last_maps(images, last)
        return outputs

    def outputs_and_relation(self, images: Tensor, last: int) -> tuple[list[Tensor], Tensor | None]:
        """Outputs of the last stages and, unless the backbone is in training, relations if propagation is by them."""
        if self.propagation_affinity == "cosine" or self.backbone.training:
            return self.outputs(images, last), None
        images = images.contiguous(memory_format=self.memory_format)
        return self.backbone.maps_and_relation(images, last, self.propagation_affinity)

    def split(self, stages: list[Tensor]) -> tuple[list[Tensor], Tensor | None]:
        """Parts what `stages` returns: stages, and the relations of cells, if they are there."""
        width = self._last_channels
        if stages[-1].shape[1] == width:
            return stages, None
        return [*stages[:-1], stages[-1][:, :width]], stages[-1][:, width:]

    def stages_of(self, outputs: list[Tensor]) -> list[Tensor]:
        """What `stages` returns, from the `outputs` of the backbone."""
        stages = outputs[-self.embedding_stages :]
        return stages if self.pca is None else [self.pca(concat_stages(_on_last_grid(stages)))]

    @property
    def pca_learned(self) -> bool:
        """Whether there is a PCA and it has its components."""
        return are_learned(self.projections)

    @property
    def reads_prompts(self) -> bool:
        """Whether the first head reads text embeddings."""
        return isinstance(self.coarse_head, PromptHead)

    def start_prompts(self, classes: Tensor, background: Tensor) -> None:
        """Sets the prompts of the first head, in the space of the features before the PCA; see `PromptHead.start`."""
        assert isinstance(self.coarse_head, PromptHead)
        projection = {} if self.pca is None else {"weight": self.pca.weight, "bias": self.pca.bias}
        self.coarse_head.start(classes, background, **projection)

    @torch.no_grad()
    def start_head(self, weight: Tensor, bias: Tensor) -> None:
        """Sets the first CAM head to weights `(L, D)` and intercepts `(L,)`, as `fit_head` returns."""
        assert isinstance(self.coarse_head, CAMHead)
        self.coarse_head.conv.weight.copy_(weight[:, :, None, None])
        assert self.coarse_head.conv.bias is not None
        self.coarse_head.conv.bias.copy_(bias)

    def read(self, stages: list[Tensor], tags: Tensor | None = None) -> ActivationMaps:
        """Computes the maps of images from their features: equations (1), (7) and (8) of docs/method.md.

        Args:
            stages: what `stages` returns.
            tags: `(B, L)`, above 0 for the classes that may be read with `attention_classes="tags"`. In a row below 0,
                and with `None`, they are unknown, and the classes with an image probability above one half stand in,
                or the most probable one.
        """
        stages, relation = self.split(stages)
        maps = self._read(stages, tags)
        maps.relation, maps.propagation_affinity = relation, self.propagation_affinity
        return maps

    def _read(self, stages: list[Tensor], tags: Tensor | None) -> ActivationMaps:
        features, embeddings = stages[-1], self.embed(stages)
        if self.aggregation is not None and self.fused:
            return self._fused(self.aggregation, features, embeddings, tags)
        coarse = self.coarse_head(features)  # P
        if self.context is not None and self.refined_head is not None:
            context = self.context(features, coarse.detach(), tags)
            return ActivationMaps(embeddings, coarse, self.refined_head(torch.cat([context, features], dim=1)))
        if self.aggregation is None:
            return ActivationMaps(embeddings, coarse)
        # Without a second head nothing is learned through the attention.
        query = embeddings if self.refined_head is not None else embeddings.detach()
        read = self.aggregation(query, self._readable(coarse, tags))  # S and F' = S Q
        attention = read.class_attention[:, : coarse.shape[1]]
        if self.refined_head is None:
            return ActivationMaps(embeddings, coarse, None, attention, self.has_prototype)
        # Prototypes are unit vectors: with the length of the pixel both halves of F^ have one scale.
        context = read.context * pixel_lengths(embeddings.detach())
        refined = self.refined_head(torch.cat([context, features], dim=1))  # P^ of F^ = [F', F]
        return ActivationMaps(embeddings, coarse, refined, attention, self.has_prototype)

    def _fused(
        self, aggregation: SemanticAggregation, features: Tensor, embeddings: Tensor, tags: Tensor | None
    ) -> ActivationMaps:
        """The same maps. `F'` and `F^` are larger than the embeddings, and what is made of them is small."""
        if self.refined_head is None:
            coarse = self.coarse_head(features)
            nothing = embeddings.new_empty(0, embeddings.shape[1])
            _, attention = fused_aggregation(aggregation, embeddings.detach(), self._readable(coarse, tags), nothing)
            attention = attention[:, : coarse.shape[1]]
            return ActivationMaps(embeddings, coarse, None, attention, self.has_prototype)
        assert isinstance(self.coarse_head, CAMHead)
        weight = self.refined_head.conv.weight
        of_context, of_features = weight.split_with_sizes([embeddings.shape[1], features.shape[1]], dim=1)
        coarse, unread = class_maps(features, self.coarse_head.conv.weight, of_features)
        if self.coarse_head.conv.bias is not None and self.refined_head.conv.bias is not None:
            coarse = coarse + self.coarse_head.conv.bias[:, None, None]
            unread = unread + self.refined_head.conv.bias[:, None, None]
        readable = self._readable(coarse, tags)
        read, attention = fused_aggregation(aggregation, embeddings, readable, of_context.flatten(1))
        refined = unread + read * pixel_lengths(embeddings.detach())
        return ActivationMaps(embeddings, coarse, refined, attention[:, : coarse.shape[1]], self.has_prototype)

    def _readable(self, coarse: Tensor, tags: Tensor | None) -> Tensor | None:
        """The classes `(B, L)` a pixel may read; `None`: all."""
        if self.attention_classes != "tags":
            return None
        if tags is not None and self.training:
            return tags  # all are known
        likely = predicted_classes(image_logits(coarse).sigmoid())
        return likely if tags is None else torch.where((tags < 0).any(dim=1, keepdim=True), likely, tags > 0)

    def class_evidence(self, stages: list[Tensor]) -> Tensor | None:
        """Attention of the strongest cells of each class where every pixel reads the prototypes of all classes.

        What an image shows is in some of its cells; the mean over all of them, which the first CAM head knows, loses a
        small object. A part of equation (12) of docs/method.md.

        Args:
            stages: what `stages` returns.

        Returns:
            `(B, L)` in `[0, 1]`, the mean over one cell of 50, NaN for a class without a prototype; `None` while there
            is no prototype.
        """
        if self.aggregation is None or not self.has_prototypes:
            return None
        embeddings, prototyped = self.embed(self.split(stages)[0]), self.has_prototype
        nothing = embeddings.new_empty(0, embeddings.shape[1])
        _, attention = fused_aggregation(self.aggregation, embeddings, None, nothing)
        of_classes = attention[:, : self.aggregation.num_classes].flatten(2).float()  # (B, L, HW)
        strongest = of_classes.topk(max(1, of_classes.shape[2] // _CELLS_OF_EVIDENCE), dim=2).values.mean(dim=2)
        return strongest if prototyped is None else strongest.masked_fill(~prototyped, torch.nan)

    def prototype_attention(self, stages: list[Tensor], tags: Tensor | None = None) -> tuple[Tensor, Tensor] | None:
        """Attention `S` of each cell over each prototype, which `read` sums by class: equation (7) of docs/method.md.

        Args:
            stages: what `stages` returns.
            tags: as for `read`.

        Returns:
            `(B, Q, h, w)`, 0 for a prototype that may not be read, and which may be, `(B or 1, Q)` bool; `None` without
            aggregation.
        """
        if self.aggregation is None:
            return None
        stages = self.split(stages)[0]
        embeddings, prototypes = self.embed(stages), self.aggregation.prototypes[None]
        readable = self.aggregation.readable(self._readable(self.coarse_head(stages[-1]), tags))
        attention = self.aggregation.attention(embeddings, prototypes.to(embeddings.dtype), readable)
        return attention.reshape(*attention.shape[:2], *embeddings.shape[2:]), readable

    @property
    def has_prototypes(self) -> bool:
        """Whether there is a prototype."""
        return self.aggregation is not None and bool(self.aggregation.valid.any())

    @property
    def has_prototype(self) -> Tensor | None:
        """Which classes have a prototype, `(L,)` bool; `None` without aggregation."""
        return None if self.aggregation is None else self.aggregation.by_class()[1].any(dim=1)

    def embed(self, stages: list[Tensor]) -> Tensor:
        """Embeddings `(B, D, H, W)` of the outputs of the last stages, on the grid of the last one."""
        if self.pca is not None:
            return stages[0]
        same = _on_last_grid(stages)
        if self.projection is not None:
            same = [self.projection(concat_stages(same))]
        weights = self.stage_weights if len(same) > 1 else None
        if self.standardization is not None:
            # Stage by stage: joined before, they would be kept once more for the backward pass.
            embeddings: Tensor = self.standardization(*same, scale=None if weights is None else weights.flatten())
            return embeddings
        return concat_stages(same) if weights is None else concat_stages(same) * weights.to(same[0].dtype)

    def prototype_scores(self, prototypes: Tensor) -> Tensor:
        """Scores each prototype: the probability of its own class by the first CAM head.

        The head reads a pixel in the direction of the prototype, with the length of a pixel of variance 1 a channel.

        Args:
            prototypes: `(L, K, D)`, unit length.

        Returns:
            `(L, K)` in `[0, 1]`.

        Raises:
            ArgumentError: where embeddings are projected, so that no head reads them.
        """
        if self.projection is not None:
            raise ArgumentError("embedding_dim", self.projection.out_channels, "leave it out to score prototypes")
        count, channels = self.embedding_stages, self.backbone.num_features
        # Of several stages the head reads the last.
        pixels = (prototypes * (count * channels) ** 0.5)[..., -channels:]
        if self.pca is not None:
            pixels = prototypes * self.pca.length
        pixels = pixels.flatten(0, 1)[:, :, None, None]  # (L, K, C) -> (LK, C, 1, 1)
        if self.standardization is not None:
            mean, variance = self.standardization.running_mean, self.standardization.running_var
            pixels = pixels * variance[-channels:, None, None].sqrt() + mean[-channels:, None, None]
        scores = self.coarse_head(pixels.to(self.coarse_head.weight.dtype)).float().flatten(1)  # (LK, L)
        scores = scores.softmax(dim=1).reshape(*prototypes.shape[:2], -1)  # (L, K, L)
        own = torch.arange(len(prototypes), device=prototypes.device)
        probabilities: Tensor = scores[own, :, own]
        return probabilities


def _join(stages: list[Tensor], relation: Tensor | None) -> list[Tensor]:
    """Stages with the relations of cells behind the channels of the last."""
    if relation is None:
        return stages
    return [*stages[:-1], torch.cat([stages[-1], relation.to(stages[-1].dtype)], dim=1)]


def _on_last_grid(stages: list[Tensor]) -> list[Tensor]:
    """Outputs of stages, those of finer grids averaged to that of the last one."""
    size = stages[-1].shape[2], stages[-1].shape[3]
    return [stage if tuple(stage.shape[2:]) == size else F.adaptive_avg_pool2d(stage, size) for stage in stages]


@check_arguments
def build_network(
    num_classes: int,
    *,
    backbone: str,
    weights: str | None,
    weights_sha256: str | None,
    output_stride: OutputStride,
    stride_in: StrideIn,
    padding_mode: PaddingMode,
    frozen_batchnorm: bool,
    frozen_stages: int,
    channels_last: bool,
    contrast: bool,
    aggregation: bool,
    beta: float,
    frozen: bool,
    projection: Projection,
    embedding_dim: int | None,
    embedding_stages: int | None,
    standardize: bool,
    attention_temperature: float,
    normalize_attention: bool,
    attention_classes: AttentionClasses,
    num_prototypes: int,
    background_prototypes: int,
    propagation_affinity: PropagationAffinity,
    num_prompts: int | None,
) -> RCANetwork:
    """Build the network with only those parts that training or reading it needs.

    Each argument is the one of `RCAModule` of its name, which says what it does; `frozen` is `backbone_mode="frozen"`,
    and a head of prompts reads the last stage alone, and all its channels.

    Returns:
        The network: with embeddings of their own only if there is something to contrast or prototypes to read.

    Raises:
        RCAError: for an argument that a part refuses; see `build_backbone`, `SemanticAggregation`.
    """
    extractor = build_backbone(
        backbone,
        output_stride=output_stride,
        weights=weights,
        weights_sha256=weights_sha256,
        stride_in=stride_in,
        padding_mode=padding_mode,
        frozen_batchnorm=frozen_batchnorm,
        frozen_stages=frozen_stages,
    )
    if frozen:
        extractor.freeze_whole()
    stages = embedding_stages or (1 if num_prompts else min(extractor.embedding_stages, len(extractor.stage_channels)))
    width = sum(extractor.stage_channels[-stages:])
    has_pca = projection == "pca"
    if has_pca and embedding_dim is None:
        embedding_dim = width if num_prompts else min(_PCA_CHANNELS, width)
    # Made even if nothing reads it, since it refuses wrong arguments.
    reader = SemanticAggregation(
        embedding_dim or width,
        num_classes,
        num_prototypes=num_prototypes,
        background_prototypes=background_prototypes,
        temperature=attention_temperature,
        normalize=normalize_attention,
    )
    needs_embeddings = contrast or aggregation or has_pca
    return RCANetwork(
        extractor,
        num_classes,
        embedding_dim=embedding_dim if needs_embeddings else None,
        embedding_stages=stages if needs_embeddings else 1,
        projection=projection,
        aggregation=reader if aggregation else None,
        second_head=beta > 0,
        attention_classes=attention_classes,
        standardize=standardize and needs_embeddings,
        channels_last=channels_last,
        # By the equations as they stand a step of 80 classes takes 1.1 times as long (benchmarks/README.md, GPU).
        fused=True,
        num_prompts=num_prompts,
        propagation_affinity=propagation_affinity,
    )
