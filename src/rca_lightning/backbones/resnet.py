"""ResNet-14 (small), 18, 34, 50 and 101 at output stride 8, 16 or 32, with the key names of torchvision."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import Backbone, init_convolutions
from rca_lightning.backbones.registry import StrideIn
from rca_lightning.errors import ArgumentError

ResNetName = Literal["resnet14", "resnet18", "resnet34", "resnet50", "resnet101"]

BLOCKS: dict[str, tuple[int, ...]] = {
    "resnet14": (2, 2, 2),
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
}
BASE_WIDTHS = {"resnet14": 32}  # 64 in all others
BOTTLENECK_NAMES = ("resnet50", "resnet101")


def _conv(width_in: int, width_out: int, size: int, *, stride: int = 1, dilation: int = 1) -> nn.Conv2d:
    padding = dilation * (size // 2)
    return nn.Conv2d(width_in, width_out, size, stride=stride, padding=padding, dilation=dilation, bias=False)


class _Block(nn.Module, ABC):
    """What both kinds of residual block share: the shortcut."""

    downsample: nn.Sequential | None

    def __init__(self, width_in: int, width_out: int, stride: int) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or width_in != width_out:
            shortcut = _conv(width_in, width_out, 1, stride=stride)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(width_out))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        residual: Tensor = self.relu(self.residual(x) + shortcut)
        return residual

    @abstractmethod
    def residual(self, x: Tensor) -> Tensor:
        """What is added to the shortcut."""


class _BasicBlock(_Block):
    def __init__(self, width_in: int, width: int, stride: int, dilations: tuple[int, int], _: StrideIn) -> None:
        super().__init__(width_in, width, stride)
        before, after = dilations
        self.conv1 = _conv(width_in, width, 3, stride=stride, dilation=before)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, dilation=after)
        self.bn2 = nn.BatchNorm2d(width)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        out: Tensor = self.bn2(self.conv2(x))
        return out


class _Bottleneck(_Block):
    expansion = 4

    def __init__(self, width_in: int, width: int, stride: int, dilations: tuple[int, int], stride_in: StrideIn) -> None:
        super().__init__(width_in, width * self.expansion, stride)
        first, second = (stride, 1) if stride_in == "1x1" else (1, stride)
        # A stride in the 1x1 comes before the 3x3, which then already works on the coarser grid.
        dilation = dilations[1] if stride_in == "1x1" else dilations[0]
        self.conv1 = _conv(width_in, width, 1, stride=first)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = _conv(width, width, 3, stride=second, dilation=dilation)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = _conv(width, width * self.expansion, 1)
        self.bn3 = nn.BatchNorm2d(width * self.expansion)

    def residual(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        out: Tensor = self.bn3(self.conv3(x))
        return out


class ResNet(Backbone):
    """A residual network (He et al. 2016, https://arxiv.org/abs/1512.03385) without pooling and classifier.

    An output stride below 32 turns the stride of the last one (16) or two (8) stages into dilation. Convolutions up
    to the one that had the stride keep the dilation of the stage before, later ones take the new dilation. So the
    dense network computes, at every second or fourth cell, exactly what the network of stride 32 computes.
    For `stride_in="3x3"` this is torchvision's `replace_stride_with_dilation`, for `"1x1"` Detectron2's rule.

    Args:
        name: which one. `"resnet14"` is none of the paper's: half as wide and without the last stage, so its own
            stride is 16, it learns small images from scratch on a CPU within minutes.
        output_stride: pixels per cell along each side.
        stride_in: the convolution of a bottleneck that carries the stride of a stage: `"3x3"` as in torchvision
            (v1.5) or `"1x1"` as in the paper (v1; `STRIDE_IN_1X1` of Detectron2). Key names are the same,
            so it must be known of a weights file. Only resnet50 and resnet101 have bottlenecks. Weights that expect
            another input than RGB of ImageNet's mean and deviation, as those of Caffe and Detectron2, do not serve.

    Raises:
        ArgumentError: if `stride_in="1x1"` is asked of a network without bottlenecks, or a stride of 32 of
            `"resnet14"`.
    """

    @check_arguments
    def __init__(
        self, name: ResNetName, *, output_stride: Literal[8, 16, 32] = 16, stride_in: StrideIn = "3x3"
    ) -> None:
        super().__init__()
        bottlenecks = name in BOTTLENECK_NAMES
        if stride_in == "1x1" and not bottlenecks:
            raise ArgumentError("stride_in", stride_in, f"{name} has no bottlenecks; give '3x3'")
        if len(BLOCKS[name]) < 4 and output_stride == 32:
            raise ArgumentError("output_stride", output_stride, f"{name} ends at stride 16; give 8 or 16")
        self._block: type[_BasicBlock] | type[_Bottleneck] = _Bottleneck if bottlenecks else _BasicBlock
        self._stride_in: StrideIn = stride_in
        base = BASE_WIDTHS.get(name, 64)
        self._width, self._reached, self._dilation = base, 4, 1
        self.output_stride = output_stride
        self.stage_channels, self.stage_strides = [], []
        self.conv1 = nn.Conv2d(3, base, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        first, second, third, *fourth = BLOCKS[name]
        self.layer1 = self._stage(base, first, stride=1)
        self.layer2 = self._stage(base * 2, second, stride=2)
        self.layer3 = self._stage(base * 4, third, stride=2)
        self.layer4 = self._stage(base * 8, fourth[0], stride=2) if fourth else nn.Identity()
        init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`: the outputs of `layer1` to `layer4`, of `layer3` in resnet14."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        stages = []
        for layer in (self.layer1, self.layer2, self.layer3, self.layer4)[: len(self.stage_channels)]:
            x = layer(x)
            stages.append(x)
        return stages

    def stages(self) -> list[list[nn.Module]]:
        """Five: the stem (`conv1`, `bn1`), then `layer1` to `layer4`."""
        return [[self.conv1, self.bn1], [self.layer1], [self.layer2], [self.layer3], [self.layer4]]

    def _stage(self, width: int, blocks: int, *, stride: int) -> nn.Sequential:
        before = self._dilation
        if self._reached * stride > self.output_stride:
            self._dilation *= stride
            stride = 1
        self._reached *= stride
        after = self._dilation
        layers = []
        for index in range(blocks):
            dilations = (before, after) if index == 0 else (after, after)
            layers.append(self._block(self._width, width, stride if index == 0 else 1, dilations, self._stride_in))
            self._width = width * getattr(self._block, "expansion", 1)
        self.stage_channels.append(self._width)
        self.stage_strides.append(self._reached)
        return nn.Sequential(*layers)
