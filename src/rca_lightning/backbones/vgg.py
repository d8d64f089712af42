"""VGG16 at output stride 8, 16 or 32, with the key names of torchvision."""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.backbones.base import Backbone, enlarge_to_whole_cells, init_convolutions

# (convolutions, channels) of the five blocks.
BLOCKS = ((2, 64), (2, 128), (3, 256), (3, 512), (3, 512))


class VGG16(Backbone):
    """The 16-layer network (Simonyan & Zisserman 2015, https://arxiv.org/abs/1409.1556) without its classifier.

    At output stride 8 it is the network of OAA (Jiang et al. 2019) and of RCA: the fourth pooling is 3x3 with stride 1,
    the fifth block has dilation 2 and no fifth pooling follows. At 16 the fourth pooling keeps its stride and the fifth
    block its dilation of 1; at 32 the fifth pooling is there as well. OAA's further convolutions belong to the head.
    Images are enlarged to a multiple of the output stride; on those that have such a size it is what torchvision has.
    Keys are `features.N.weight` and `features.N.bias`, N as in torchvision.

    Args:
        output_stride: pixels per cell along each side.
    """

    @check_arguments
    def __init__(self, *, output_stride: Literal[8, 16, 32] = 8) -> None:
        super().__init__()
        self.output_stride = output_stride
        self.stage_channels = [width for _, width in BLOCKS]
        self.stage_strides = [min(2**block, output_stride) for block in range(1, 6)]
        layers: list[nn.Module] = []
        self._ends: list[int] = []
        width_in = 3
        for block, (convolutions, width) in enumerate(BLOCKS, start=1):
            dilation = 2 if block == 5 and output_stride == 8 else 1
            for _ in range(convolutions):
                convolution = nn.Conv2d(width_in, width, 3, padding=dilation, dilation=dilation)
                layers += [convolution, nn.ReLU(inplace=True)]
                width_in = width
            layers += _pooling(block, output_stride)
            self._ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        init_convolutions(self)

    def forward(self, images: Tensor) -> list[Tensor]:
        """See `Backbone.forward`: the outputs of the five blocks, each after its pooling."""
        x = enlarge_to_whole_cells(images, self.output_stride)
        outputs = []
        for stage in self.stages():
            for module in stage:
                x = module(x)
            outputs.append(x)
        return outputs

    def stages(self) -> list[list[nn.Module]]:
        """Five: the blocks of convolutions between the poolings."""
        modules = list(self.features)
        return [modules[start:end] for start, end in zip([0, *self._ends], self._ends, strict=False)]


def _pooling(block: int, output_stride: int) -> list[nn.Module]:
    """The pooling after a block, none where the network ends without one."""
    if 2**block <= output_stride:
        return [nn.MaxPool2d(2, stride=2)]
    return [nn.MaxPool2d(3, stride=1, padding=1)] if block == 4 else []
