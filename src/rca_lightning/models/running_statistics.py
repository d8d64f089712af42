"""What normalising layers have seen, kept for a while."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rca_lightning.models.standardization import Standardization


def learns_statistics(part: nn.Module) -> bool:
    """Whether a forward pass changes the running statistics of this layer."""
    return isinstance(part, (_BatchNorm, Standardization)) and part.training


class RunningStatistics:
    """The running statistics of a network as they are now, of those layers that a forward pass would change.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> before = RunningStatistics(layer)
        >>> _ = layer(torch.full((1, 3, 2, 2), torch.nan))
        >>> before.restore()
        >>> layer.running_mean
        tensor([0., 0., 0.])
    """

    def __init__(self, network: nn.Module) -> None:
        learning = [part for part in network.modules() if learns_statistics(part)]
        self._live = [buffer for part in learning for buffer in part.buffers()]
        self._kept = [buffer.clone() for buffer in self._live]

    @torch.no_grad()
    def restore(self) -> None:
        """Put them back."""
        for live, kept in zip(self._live, self._kept, strict=True):
            live.copy_(kept)
