"""Building the network of RCA, or of a method it is compared with, from the arguments of `RCAModule`."""

from __future__ import annotations

from typing import Literal

from rca_lightning.models.aggregation import SemanticAggregation
from rca_lightning.models.backbones import OutputStride, build_backbone
from rca_lightning.models.context import ContextModule, ContextName, build_context
from rca_lightning.models.network import AttentionClasses, RCANetwork
from rca_lightning.models.resnet import StrideIn

Context = Literal["prototypes"] | ContextName


def build_network(
    num_classes: int,
    *,
    backbone: str,
    weights: str,
    weights_sha256: str | None,
    output_stride: OutputStride,
    stride_in: StrideIn,
    frozen_batchnorm: bool,
    frozen_stages: int,
    channels_last: bool,
    contrast: bool,
    aggregation: bool,
    context: Context,
    beta: float,
    embedding_dim: int | None,
    embedding_stages: int | None,
    standardize: bool,
    attention_temperature: float,
    normalize_attention: bool,
    attention_classes: AttentionClasses,
    num_prototypes: int,
    background_prototypes: int,
) -> RCANetwork:
    """Build the network with only those parts that training or reading it needs.

    Each argument is the one of `RCAModule` of its name, which says what it does.

    Returns:
        The network: with embeddings of their own only if there is something to contrast or prototypes to read.

    Raises:
        RCAError: for an argument that a part refuses; see `build_backbone`, `SemanticAggregation`, `build_context`.
    """
    extractor = build_backbone(
        backbone,
        output_stride=output_stride,
        weights=weights,
        weights_sha256=weights_sha256,
        stride_in=stride_in,
        frozen_batchnorm=frozen_batchnorm,
        frozen_stages=frozen_stages,
    )
    # The last stage knows the class, the one before the parts.
    stages = embedding_stages or min(2, extractor.num_stages)
    # Made even if nothing reads it, since it refuses wrong arguments.
    reader = SemanticAggregation(
        embedding_dim or sum(extractor.stage_channels(stages)),
        num_classes,
        num_prototypes=num_prototypes,
        background_prototypes=background_prototypes,
        temperature=attention_temperature,
        normalize=normalize_attention,
    )
    reads_prototypes = aggregation and context == "prototypes"
    needs_embeddings = contrast or reads_prototypes
    rival: ContextModule | None = None
    if aggregation and context != "prototypes":
        readable = attention_classes if context == "object_context" else "all"
        rival = build_context(context, extractor.num_features, num_classes, attention_classes=readable)
    return RCANetwork(
        extractor,
        num_classes,
        embedding_dim=embedding_dim if needs_embeddings else None,
        embedding_stages=stages if needs_embeddings else 1,
        aggregation=reader if reads_prototypes else None,
        context=rival,
        second_head=beta > 0,
        attention_classes=attention_classes,
        standardize=standardize and needs_embeddings,
        channels_last=channels_last,
    )
