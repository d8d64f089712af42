"""What every feature extractor of this library is: a network with a stride, a width and parts that can be frozen."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.errors import ArgumentError

if TYPE_CHECKING:
    from typing_extensions import Self


class Backbone(nn.Module, ABC):
    """A network without its classifier: images in, one map of features out.

    Attributes:
        num_features: channels D of the map.
        output_stride: pixels of the image a cell of the map stands for, along each side.
    """

    num_features: int
    output_stride: int

    def __init__(self) -> None:
        super().__init__()
        self.frozen_batchnorm = False
        self.frozen_stages = 0

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Extract features.

        Args:
            images: (B, 3, H, W), RGB, normalised with the mean and standard deviation of ImageNet.

        Returns:
            (B, D, ceil(H / output_stride), ceil(W / output_stride)).
        """

    @abstractmethod
    def stages(self) -> list[list[nn.Module]]:
        """The stages that can be frozen, from the image on; empty for a network that has no known stages."""

    def last_stages(self, images: Tensor, count: int) -> list[Tensor]:
        """Outputs of the last `count` stages, the features last.

        Args:
            images: as for `forward`.
            count: at least 1.

        Returns:
            `count` maps, each `(B, C, H, W)` with sizes of its own.
        """
        stages = [stage[-1] for stage in self.stages() if not isinstance(stage[-1], nn.Identity)]
        found: list[Tensor] = []
        hooks = [
            stage.register_forward_hook(lambda module, inputs, output: found.append(output))
            for stage in stages[len(stages) - count : -1]
        ]
        try:
            features = self(images)
        finally:
            for hook in hooks:
                hook.remove()
        return [*found, features]

    @property
    def num_stages(self) -> int:
        """How many stages `last_stages` offers; 1 of a network that has no known stages."""
        return max(1, sum(not isinstance(stage[-1], nn.Identity) for stage in self.stages()))

    def stage_channels(self, count: int) -> list[int]:
        """Channels of the last `count` stages, the features' last.

        Raises:
            ArgumentError: if the network does not have so many stages.
        """
        if not 1 <= count <= self.num_stages:
            raise ArgumentError("embedding_stages", count, f"{type(self).__name__} offers 1 to {self.num_stages}")
        if count == 1:
            return [self.num_features]
        training = self.training
        self.eval()
        with torch.no_grad():
            maps = self.last_stages(torch.zeros(1, 3, 64, 64), count)
        self.train(training)
        return [stage.shape[1] for stage in maps]

    def weights_target(self) -> nn.Module:
        """The module whose key names a file of weights uses: this one, unless it wraps another."""
        return self

    def freeze(self, *, batchnorm: bool = True, stages: int = 0) -> None:
        """Hold parts of the network fixed from now on, in training mode too.

        What is frozen stays in evaluation mode whatever `train` is told, and its parameters ask for no gradient
        (so `DistributedDataParallel` needs no `find_unused_parameters`).

        Args:
            batchnorm: freeze the statistics and the affine parameters of every batch normalisation.
            stages: how many stages to freeze, from the image on: 0 none, 1 the stem, 2 the stem and the first
                stage, up to 5, the whole network. For the order see `stages` of the network.

        Raises:
            ArgumentError: if the network has fewer stages.
        """
        available = len(self.stages())
        if not 0 <= stages <= available:
            what = f"a number from 0 (none) to {available} (all)" if available else "0: it has no known stages"
            raise ArgumentError("frozen_stages", stages, f"{type(self).__name__} accepts {what}")
        self.frozen_batchnorm = batchnorm
        self.frozen_stages = stages
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:
        """Set the training mode, except for what is frozen: that stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def _frozen_modules(self) -> Iterator[nn.Module]:
        for stage in self.stages()[: self.frozen_stages]:
            yield from stage
        if self.frozen_batchnorm:
            yield from (module for module in self.modules() if isinstance(module, _BatchNorm))


def init_convolutions(network: nn.Module) -> None:
    """Initialise every convolution as torchvision does: He et al. 2015, normal, fan-out; biases zero.

    Args:
        network: changed in place; everything but convolutions is left as it is.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
