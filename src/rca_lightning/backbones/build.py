"""Feature extractors by name."""

from __future__ import annotations

import logging
from typing import Literal, cast, get_args

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import Backbone, PaddingMode
from rca_lightning.backbones.clip import ClipBackbone
from rca_lightning.backbones.registry import WEIGHTS_NAMES, StrideIn, find_weights, weights_file
from rca_lightning.backbones.resnet import BOTTLENECK_NAMES, ResNet, ResNetName
from rca_lightning.backbones.resnet38d import ResNet38d
from rca_lightning.backbones.timm import TimmBackbone
from rca_lightning.backbones.vgg import VGG16
from rca_lightning.backbones.weights import load_weights, trained_stride
from rca_lightning.errors import ArgumentError

__all__ = ["Backbone", "BackboneName", "OutputStride", "build_backbone"]

_log = logging.getLogger(__name__)

BackboneName = Literal["resnet14", "resnet18", "resnet34", "resnet50", "resnet101", "vgg16", "resnet38d"]
OutputStride = Literal[8, 16, 32]
TIMM_PREFIX = "timm:"
CLIP_PREFIX = "clip:"


@check_arguments
def build_backbone(
    name: str,
    *,
    output_stride: OutputStride = 16,
    weights: str | None = "none",
    weights_sha256: str | None = None,
    stride_in: StrideIn | None = None,
    padding_mode: PaddingMode = "zeros",
    frozen_batchnorm: bool = True,
    frozen_stages: int = 0,
) -> Backbone:
    """Build a feature extractor, load its weights and freeze what shall not be trained.

    Args:
        name: one of `BackboneName`, `timm:<model>` for a model of the timm package, or `clip:<model>`, see
            `ClipBackbone`.
        output_stride: pixels per cell along each side. A vision transformer of timm has its patch size instead.
        weights: `"none"` for random weights, `"imagenet"` for published ones (see `registry`), a local file, or a URL;
            see `load_weights`. `None` for random weights that nobody asked for: the modules warn of them.
        weights_sha256: the checksum of the weights; needed for a URL.
        stride_in: which convolution of a bottleneck has the stride: `"3x3"` (torchvision's weights) or `"1x1"`
            (weights of the original ResNet). Only for resnet50 and resnet101; see `ResNet`. `None`: where the weights
            had it when they were trained, see `trained_stride`.
        padding_mode: what convolutions see beyond the border: `"zeros"` as published weights expect, or `"replicate"`;
            see `Backbone.pad_convolutions`.
        frozen_batchnorm: keep statistics and affine parameters of batch normalisations fixed.
        frozen_stages: how many stages to keep fixed, 0 (none) to 5 (all), of a transformer to 1 and the number of its
            blocks; see `Backbone.freeze`.

    Returns:
        The network, in training mode.

    Raises:
        ArgumentError: if an argument is out of its range, or the network does not offer it.
        WeightsError: if the weights cannot be had or do not fit.
        MissingExtraError: if a timm model is asked for without timm.

    Example:
        >>> import torch
        >>> backbone = build_backbone("resnet18", output_stride=8)
        >>> [tuple(stage.shape) for stage in backbone(torch.zeros(1, 3, 60, 33))]
        [(1, 64, 15, 9), (1, 128, 8, 5), (1, 256, 8, 5), (1, 512, 8, 5)]
    """
    _check(name, stride_in)
    if stride_in is None:
        stride_in = trained_stride(weights, backbone=name, sha256=weights_sha256)
    backbone = _construct(name, output_stride, stride_in)
    backbone.pad_convolutions(padding_mode)
    if weights in WEIGHTS_NAMES:
        entry = find_weights(name, weights)
        if stride_in != entry.stride_in:
            _log.warning(
                "stride_in=%r, but weights %r of %s were trained with %r: features will be poor; leave it out",
                stride_in,
                weights,
                name,
                entry.stride_in,
            )
        weights = str(weights_file(entry))
    if weights is not None:
        target, convert = backbone.weights_target(), backbone.convert_weights
        load_weights(
            target, weights, sha256=weights_sha256, convert=convert, ignore_prefixes=backbone.ignored_weights()
        )
        backbone.has_chosen_weights = True
    backbone.freeze(batchnorm=frozen_batchnorm, stages=frozen_stages)
    return backbone


def _check(name: str, stride_in: StrideIn | None) -> None:
    if name not in get_args(BackboneName) and not name.startswith((TIMM_PREFIX, CLIP_PREFIX)):
        names = ", ".join(get_args(BackboneName))
        raise ArgumentError("backbone", name, f"give one of {names}, {TIMM_PREFIX}<model> or {CLIP_PREFIX}<model>")
    if stride_in == "1x1" and name not in BOTTLENECK_NAMES:
        raise ArgumentError("stride_in", stride_in, f"only {' and '.join(BOTTLENECK_NAMES)} offer it; give '3x3'")


def _construct(name: str, output_stride: OutputStride, stride_in: StrideIn) -> Backbone:
    if name.startswith(TIMM_PREFIX):
        return TimmBackbone(name.removeprefix(TIMM_PREFIX), output_stride=output_stride)
    if name.startswith(CLIP_PREFIX):
        return ClipBackbone(name.removeprefix(CLIP_PREFIX), output_stride=output_stride)
    if name == "vgg16":
        return VGG16(output_stride=output_stride)
    if name == "resnet38d":
        return ResNet38d(output_stride=output_stride)
    return ResNet(cast(ResNetName, name), output_stride=output_stride, stride_in=stride_in)
