"""Segmentation network: an encoder, a segmentation head and an optional classification head for tags."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import Backbone
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import CAMHead, image_logits
from rca_lightning.segmentation.heads import DeepLabV2Head, DeepLabV3PlusHead, LinearHead


def pixel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Computes the mean cross-entropy of the labelled pixels, in float32.

    Args:
        logits: `(B, L + 1, h, w)`, enlarged bilinearly to the size of the mask.
        mask: `(B, H, W)` int64: 0 background, 1..L, 255 no label.

    Returns:
        The mean, a scalar; 0 with gradients of 0 where no pixel has a label.

    Example:
        >>> import torch
        >>> pixel_cross_entropy(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 255], [3, 255]]]))
        tensor(1.3863)
    """
    enlarged = F.interpolate(logits.float(), size=mask.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(enlarged, mask, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (mask != IGNORE_INDEX).sum().clamp_min(1)


HeadName = Literal["linear", "deeplabv2", "deeplabv3plus"]

_LOW_LEVEL_STRIDE = 4  # of the early stage that the decoder of v3+ reads


@check_arguments
def build_head(head: HeadName, backbone: Backbone, num_labels: int) -> tuple[nn.Module, int]:
    """Builds the head of this name for a backbone.

    Args:
        head: see `SegmentationNetwork`.
        backbone: gives the features.
        num_labels: `L + 1`, the background among them.

    Returns:
        The head, and how many of the last stages of the backbone it reads.

    Raises:
        ArgumentError: if the head is unknown, or "deeplabv3plus" meets a backbone whose stages are not known.
    """
    stride = backbone.output_stride
    if head == "linear":
        return LinearHead(backbone.num_features, num_labels), 1
    if head == "deeplabv2":
        rates = [max(1, round(rate * 8 / stride)) for rate in (6, 12, 18, 24)]
        return DeepLabV2Head(backbone.num_features, num_labels, rates=rates), 1
    stages, low_channels = _early_stage(backbone)
    rates = [max(1, round(rate * 16 / stride)) for rate in (6, 12, 18)]
    return DeepLabV3PlusHead(backbone.num_features, low_channels, num_labels, rates=rates), stages


class SegmentationNetwork(nn.Module):
    """Encoder (a backbone) and head; computes the logits of every label at every cell.

    The dilations of a head are those of its paper in pixels: in cells they shrink with a larger output stride.

    Args:
        backbone: gives the features.
        head: "linear" and "deeplabv2" give logits at the output stride of the backbone, "deeplabv3plus" at that of an
            early stage, a quarter of the image's size.
        num_labels: `L + 1`, the background among them.
        tag_head: whether a CAM head on the same features classifies the image. `forward` then multiplies the
            probability of a class at each pixel by that of the image's tag.
        channels_last: memory layout of the convolutions.

    Raises:
        ArgumentError: if the head is unknown, or "deeplabv3plus" meets a backbone whose stages are not known.
    """

    @check_arguments
    def __init__(
        self,
        backbone: Backbone,
        head: HeadName,
        num_labels: int,
        *,
        tag_head: bool = False,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head, self.stages = build_head(head, backbone, num_labels)
        self.tag_head = CAMHead(backbone.num_features, num_labels - 1) if tag_head else None
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.to(memory_format=self.memory_format)  # type: ignore[call-overload]

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits of the pixels, weighed by the tags where there is a tag head.

        Args:
            images: `(B, 3, H, W)`, normalised as the backbone expects.

        Returns:
            `(B, L + 1, h, w)`, label 0 the background.
        """
        logits, tag_maps = self.branches(images)
        return logits if tag_maps is None else weigh_by_tags(logits, image_logits(tag_maps))

    def branches(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Computes the output of each head, as the losses need it.

        Returns:
            Logits of the pixels `(B, L + 1, h, w)`, and activation maps of the tags `(B, L, h, w)`, whose mean is the
            logit of the image's tag; `None` without a tag head.
        """
        images = images.contiguous(memory_format=self.memory_format)
        stages = self.backbone.last_maps(images, self.stages)
        return self.head(stages), None if self.tag_head is None else self.tag_head(stages[-1])


def weigh_by_tags(logits: Tensor, tag_logits: Tensor) -> Tensor:
    """Multiplies the probability of every class by that of its tag: adds its logarithm to the logits.

    Args:
        logits: `(B, L + 1, h, w)`, label 0 the background.
        tag_logits: `(B, L)`.

    Returns:
        `(B, L + 1, h, w)`.

    Example:
        >>> import torch
        >>> even, cat_no_dog = torch.zeros(1, 3, 1, 1), torch.tensor([[9.0, -9.0]])
        >>> weigh_by_tags(even, cat_no_dog).softmax(1).flatten().round(decimals=2)
        tensor([0.5000, 0.5000, 0.0000])
    """
    added = F.pad(F.logsigmoid(tag_logits), (1, 0))  # (B, L) -> (B, L + 1)
    return logits + added[:, :, None, None]


def _early_stage(backbone: Backbone) -> tuple[int, int]:
    """Finds the first stage of stride 4 or above: its position from the end, and its channels."""
    strides = backbone.stage_strides
    for index, stride in enumerate(strides[:-1]):
        if stride >= _LOW_LEVEL_STRIDE:
            return len(strides) - index, backbone.stage_channels[index]
    name = type(backbone).__name__
    raise ArgumentError("head", "deeplabv3plus", f"{name} has no known early stages to refine with; give 'deeplabv2'")
