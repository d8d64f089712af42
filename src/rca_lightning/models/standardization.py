"""Mean 0 and variance 1 in every channel, over the batches of all processes together."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.distributed import is_distributed, stack_over_ranks


class Standardization(nn.Module):
    """A BatchNorm without scale and shift that computes the same on one process as on many, on any device.

    Each process alone would standardise by its own images, so distances between embeddings would depend on the number
    of processes. `nn.SyncBatchNorm` does not run on a CPU, and has to be asked for. State as of `nn.BatchNorm2d`.

    Args:
        channels: of the features.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics that evaluation uses.

    Shapes:
        `(B, C, H, W)` -> the same.

    Example:
        >>> standardized = Standardization(2)(torch.randn(4, 2, 8, 8) * 3 + 5)
        >>> bool((standardized.mean(dim=(0, 2, 3)).abs() < 1e-5).all())
        True
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, *, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps = eps
        self.momentum = momentum
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.zeros((), dtype=torch.long))

    def forward(self, features: Tensor) -> Tensor:
        """Features with mean 0 and variance 1; in evaluation by the running statistics."""
        if self.training:
            self.num_batches_tracked += 1
        if self.training and is_distributed():
            return self._over_ranks(features)
        running = self.running_mean, self.running_var
        return F.batch_norm(features, *running, training=self.training, momentum=self.momentum, eps=self.eps)

    def _over_ranks(self, features: Tensor) -> Tensor:
        values = features.to(torch.promote_types(features.dtype, torch.float32))
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        number = mean.new_tensor([features.numel() // features.shape[1]])
        of_ranks = stack_over_ranks(torch.cat([number, mean, variance]))  # (world size, 1 + 2 C)
        number, means, variances = of_ranks.split_with_sizes([1, len(mean), len(mean)], dim=1)
        share = number / number.sum()
        # Chan et al. 1979: exact for large means too, unlike the mean of the squares.
        mean = (share * means).sum(dim=0)
        variance = (share * (variances + (means - mean) ** 2)).sum(dim=0)
        with torch.no_grad():
            unbiased = variance * number.sum() / (number.sum() - 1).clamp_min(1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
        shape = (1, -1, 1, 1)
        return ((values - mean.view(shape)) * (variance + self.eps).rsqrt().view(shape)).to(features.dtype)
