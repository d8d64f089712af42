"""Context from elsewhere than prototypes: what such modules share, and how to build one by name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Literal, get_args

import torch
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import image_logits

if TYPE_CHECKING:
    from rca_lightning.rca.network import AttentionClasses

ContextName = Literal["co_attention", "double_attention", "object_context"]


class ContextModule(nn.Module, ABC):
    """Gives every pixel a context; the second CAM head reads `[context, features]`.

    It takes the place of `SemanticAggregation` in the network, so that where the context comes from is all that
    differs. All its parameters take part in every training step.

    Attributes:
        context_channels: channels of the context.
    """

    context_channels: int

    @abstractmethod
    def forward(self, features: Tensor, coarse: Tensor, tags: Tensor | None = None) -> Tensor:
        """Context of every pixel.

        Args:
            features: `(B, C, H, W)`.
            coarse: `(B, L, H, W)`, maps of the first CAM head, detached.
            tags: `(B, L)`, 0 or 1; `None` where unknown: the classes with an image probability above one half.

        Returns:
            `(B, context_channels, H, W)`.
        """


def build_context(
    name: ContextName,
    in_channels: int,
    num_classes: int,
    *,
    key_channels: int = 256,
    attention_classes: AttentionClasses = "all",
    background: bool = True,
    reference_grid: int = 14,
) -> ContextModule:
    """Build a context module.

    Parameters and multiply-adds a cell at the defaults, with 2048 channels, 20 classes and maps of 16 x 16 in
    training. Semantic aggregation of 20 x 10 + 64 prototypes has none and 1.09 M; a projection of the features to
    256 channels for it has 0.52 M of both.

    | name | parameters | multiply-adds | context channels |
    | --- | --- | --- | --- |
    | co_attention | 1.05 M | 1.64 M | 2048 |
    | double_attention | 1.57 M | 1.70 M | 256 |
    | object_context | 1.64 M | 0.73 M | 256 |

    Args:
        name: "co_attention" (pixels of another image, see `CoAttention`), "double_attention" (descriptors of the
            same image, see `DoubleAttention`) or "object_context" (regions of the same image, see `ObjectContext`).
        in_channels: `C` of the features.
        num_classes: foreground classes `L`.
        key_channels: inner width.
        attention_classes: only for object_context, whether pixels read the regions of all classes or those of the
            tags. co_attention always goes by the tags, double_attention never.
        background: only for object_context, whether the background is a region too.
        reference_grid: only for co_attention, cells along each side that are kept of an image; 0 keeps none.

    Raises:
        ArgumentError: if an argument is out of its range, or the context does not offer it.

    Example:
        >>> context = build_context("double_attention", in_channels=32, num_classes=3, key_channels=8)
        >>> context(torch.randn(2, 32, 5, 7), torch.randn(2, 3, 5, 7)).shape
        torch.Size([2, 8, 5, 7])
    """
    # Here, since the modules derive from the class above.
    from rca_lightning.rca.co_attention import CoAttention
    from rca_lightning.rca.double_attention import DoubleAttention
    from rca_lightning.rca.object_context import ObjectContext

    _check(name, key_channels, attention_classes)
    if name == "co_attention":
        return CoAttention(in_channels, num_classes, key_channels=key_channels, reference_grid=reference_grid)
    if name == "double_attention":
        return DoubleAttention(in_channels, channels=key_channels, descriptors=key_channels)
    tags_only = attention_classes == "tags"
    return ObjectContext(in_channels, key_channels=key_channels, tags_only=tags_only, background=background)


def _check(name: str, key_channels: int, attention_classes: str) -> None:
    if name not in get_args(ContextName):
        raise ArgumentError("context", name, f"give one of {', '.join(get_args(ContextName))}")
    if key_channels < 1:
        raise ArgumentError("key_channels", key_channels, "give at least 1")
    if attention_classes not in ("all", "tags"):
        raise ArgumentError("attention_classes", attention_classes, "give 'all' or 'tags'")
    if name == "double_attention" and attention_classes == "tags":
        raise ArgumentError("attention_classes", "tags", "double_attention knows no classes; give 'all'")


def present_classes(coarse: Tensor, tags: Tensor | None) -> Tensor:
    """Which classes an image has, `(B, L)` boolean: its tags or, where unknown, the probable ones by `coarse`."""
    return image_logits(coarse) > 0 if tags is None else tags > 0


def attend(queries: Tensor, keys: Tensor, values: Tensor, readable: Tensor | None = None) -> Tensor:
    """Scaled dot-product attention: `softmax(Q K^T / sqrt(d)) V`, the softmax in single precision.

    Args:
        queries: `(B, N, d)`.
        keys: `(B, M, d)`.
        values: `(B, M, v)`.
        readable: boolean `(B, M)`, false where nothing may be read; who may read nothing gets 0. `None`: all.

    Returns:
        `(B, N, v)`.
    """
    # A product of two rows of half precision may exceed what half precision holds.
    with torch.autocast(queries.device.type, enabled=False):
        logits = queries.float() * queries.shape[2] ** -0.5 @ keys.float().transpose(1, 2)  # (B, N, M)
        if readable is not None:
            logits = logits.masked_fill(~readable[:, None], torch.finfo(logits.dtype).min)
        attention = logits.softmax(dim=2)
        if readable is not None:
            attention = attention * readable[:, None]
    read: Tensor = attention.to(values.dtype) @ values
    return read


def gather(logits: Tensor, features: Tensor) -> Tensor:
    """Means of features, weighted by softmax over all positions of the image, in single precision.

    Args:
        logits: `(B, N, H, W)`, one map for each mean.
        features: `(B, C, H, W)`.

    Returns:
        `(B, N, C)` float32.
    """
    # Weights of many cells are small numbers, of which half precision keeps few digits.
    with torch.autocast(features.device.type, enabled=False):
        weights = logits.flatten(2).float().softmax(dim=2)  # (B, N, H, W) -> (B, N, HW)
        means: Tensor = weights @ features.flatten(2).float().transpose(1, 2)  # (B, N, HW) (B, HW, C) -> (B, N, C)
        return means
