"""Standardisation of embeddings: mean 0 and variance 1 in every channel, over the batches of all processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.distributed import is_distributed, stack_over_ranks
from rca_lightning.errors import ArgumentError


class Standardization(nn.Module):
    """A BatchNorm without scale and shift whose result does not depend on the number of processes, on any device.

    By the statistics of each process alone, distances between embeddings would depend on the number of processes.
    `nn.SyncBatchNorm` does not run on a CPU. The state is that of `nn.BatchNorm2d`.

    Args:
        channels: of the features.
        eps: added to the variance.
        momentum: weight of a batch in the running statistics that evaluation uses.

    Shapes:
        `(B, C, H, W)`, or several with `C` channels together -> `(B, C, H, W)`.

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

    def forward(self, *features: Tensor, scale: Tensor | None = None) -> Tensor:
        """Features with mean 0 and variance 1; in evaluation by the running statistics.

        Args:
            *features: `(B, C, H, W)`, or several whose channels together are `C`, in this order: the backward pass
                needs what it is given, and these may be kept by others anyway.
            scale: `(C,)`, what each channel is multiplied with afterwards.

        Raises:
            ArgumentError: in training, if the batch has a single cell.
        """
        if self.training and not is_distributed() and features[0][:, 0].numel() == 1:
            shape = tuple(features[0].shape)
            raise ArgumentError("features", shape, "a single cell has no variance; give larger or more images")
        if self.training:
            self.num_batches_tracked += 1
        if self.training and is_distributed():
            return self._over_ranks(features, scale)
        channels = [part.shape[1] for part in features]
        of_parts = (value.split_with_sizes(channels) for value in (self.running_mean, self.running_var))
        scales = [None] * len(features) if scale is None else scale.split_with_sizes(channels)
        how = self.training, self.momentum, self.eps
        return concat_stages(
            [
                F.batch_norm(part, mean, variance, weight, None, *how)
                for part, mean, variance, weight in zip(features, *of_parts, scales, strict=True)
            ]
        )

    def _over_ranks(self, features: tuple[Tensor, ...], scale: Tensor | None) -> Tensor:
        values = [part.to(torch.promote_types(part.dtype, torch.float32)) for part in features]
        moments = [torch.var_mean(part, dim=(0, 2, 3), correction=0) for part in values]
        variance, mean = (torch.cat(parts) for parts in zip(*moments, strict=True))
        number = mean.new_tensor([features[0][:, 0].numel()])
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
        factor = (variance + self.eps).rsqrt()
        factor = factor if scale is None else factor * scale
        channels = [part.shape[1] for part in features]
        parts = zip(values, mean.split_with_sizes(channels), factor.split_with_sizes(channels), strict=True)
        shape = (1, -1, 1, 1)
        return concat_stages([((part - m.view(shape)) * f.view(shape)).to(features[0].dtype) for part, m, f in parts])


def concat_stages(parts: list[Tensor]) -> Tensor:
    """Features `(B, C, H, W)` of several stages, concatenated by channel; a single one without a copy."""
    return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]
