"""ResNet-38d: the wide ResNet-38 as AffinityNet and its successors use it, with their key names."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import relu

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import Backbone, init_convolutions


class _WideBlock(nn.Module):
    """Two 3x3 convolutions, each after its normalisation; dilation before and after the first one's stride."""

    def __init__(
        self, width_in: int, middle: int, width: int, *, stride: int = 1, dilations: tuple[int, int] = (1, 1)
    ) -> None:
        super().__init__()
        before, after = dilations
        self.bn_branch2a = nn.BatchNorm2d(width_in)
        self.conv_branch2a = nn.Conv2d(width_in, middle, 3, stride=stride, padding=before, dilation=before, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(middle)
        self.conv_branch2b1 = nn.Conv2d(middle, width, 3, padding=after, dilation=after, bias=False)
        self.conv_branch1 = None
        if stride != 1 or width_in != width:
            self.conv_branch1 = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = relu(self.bn_branch2a(x))
        shortcut = x if self.conv_branch1 is None else self.conv_branch1(activated)
        x = self.conv_branch2a(activated)
        x = self.conv_branch2b1(relu(self.bn_branch2b1(x)))
        return x + shortcut


class _WideBottleneck(nn.Module):
    """1x1, 3x3, 1x1, each after its normalisation, with dropout of whole channels before the last two."""

    def __init__(self, width_in: int, width: int, *, stride: int, dilation: int, dropout: float) -> None:
        super().__init__()
        narrow, middle = width // 4, width // 2
        self.bn_branch2a = nn.BatchNorm2d(width_in)
        self.conv_branch2a = nn.Conv2d(width_in, narrow, 1, stride=stride, bias=False)
        self.bn_branch2b1 = nn.BatchNorm2d(narrow)
        self.dropout_2b1 = nn.Dropout2d(dropout)
        self.conv_branch2b1 = nn.Conv2d(narrow, middle, 3, padding=dilation, dilation=dilation, bias=False)
        self.bn_branch2b2 = nn.BatchNorm2d(middle)
        self.dropout_2b2 = nn.Dropout2d(dropout)
        self.conv_branch2b2 = nn.Conv2d(middle, width, 1, bias=False)
        self.conv_branch1 = nn.Conv2d(width_in, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        activated = relu(self.bn_branch2a(x))
        x = self.conv_branch2a(activated)
        x = self.conv_branch2b1(self.dropout_2b1(relu(self.bn_branch2b1(x))))
        x = self.conv_branch2b2(self.dropout_2b2(relu(self.bn_branch2b2(x))))
        out: Tensor = x + self.conv_branch1(activated)
        return out


class ResNet38d(Backbone):
    """Wide ResNet-38, model A1 of Wu et al. 2019 (https://arxiv.org/abs/1611.10080), dilated.

    Output stride 8 is the network of AffinityNet (Ahn & Kwak 2018, https://arxiv.org/abs/1803.10464): `b5` with
    dilation 2, `b6` and `b7` with dilation 4, D = 4096. At 16 `b5` has its stride back, at 32 `b6` too. Key names are
    those of its converted ImageNet weights: `conv1a`, `b2`, `b2_1` ... `b7` with `bn_branch2a`, `conv_branch2a`,
    `bn_branch2b1`, `conv_branch2b1`, `bn_branch2b2`, `conv_branch2b2`, `conv_branch1`, and `bn7`.

    Args:
        output_stride: pixels per cell along each side.
    """

    @check_arguments
    def __init__(self, *, output_stride: Literal[8, 16, 32] = 8) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.stage_channels, self.stage_strides = [128, 256, 512, 4096], [2, 4, 8, output_stride]
        dense5, dense6 = output_stride < 16, output_stride < 32
        dilation5 = 2 if dense5 else 1
        dilation6 = dilation5 * 2 if dense6 else dilation5
        self.conv1a = nn.Conv2d(3, 64, 3, padding=1, bias=False)
        self._add_stage("b2", 64, 128, 128, blocks=3, stride=2)
        self._add_stage("b3", 128, 256, 256, blocks=3, stride=2)
        self._add_stage("b4", 256, 512, 512, blocks=6, stride=2)
        self._add_stage("b5", 512, 512, 1024, blocks=3, stride=1 if dense5 else 2, dilation=dilation5)
        self.b6 = _WideBottleneck(1024, 2048, stride=1 if dense6 else 2, dilation=dilation6, dropout=0.3)
        self.b7 = _WideBottleneck(2048, 4096, stride=1, dilation=dilation6, dropout=0.5)
        self.bn7 = nn.BatchNorm2d(4096)
        init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`: the outputs of `b2*`, `b3*`, `b4*` and `bn7`."""
        x = self.conv1a(images)
        outputs = []
        for stage in self.stages()[1:]:
            for module in stage:
                x = module(x)
            outputs.append(x)
        return [*outputs[:-1], relu(x)]

    def stages(self) -> list[list[nn.Module]]:
        """Five: `conv1a`; `b2*`; `b3*`; `b4*`; `b5*` with `b6`, `b7` and `bn7`. AffinityNet freezes two."""
        found: list[list[nn.Module]] = [[] for _ in range(5)]
        for name, module in self.named_children():
            level = 1 if name == "conv1a" else int(name.removeprefix("bn").removeprefix("b")[0])
            found[min(level, 5) - 1].append(module)
        return found

    def _add_stage(
        self, name: str, width_in: int, middle: int, width: int, *, blocks: int, stride: int, dilation: int = 1
    ) -> None:
        first = _WideBlock(width_in, middle, width, stride=stride, dilations=(1, dilation))
        self.add_module(name, first)
        for index in range(1, blocks):
            block = _WideBlock(width, middle, width, dilations=(dilation, dilation))
            self.add_module(f"{name}_{index}", block)
