"""Projection of features onto the principal components of their standardised channels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError


class Moments:
    """Sums of cells and of their products, from which mean, variance and covariance follow.

    Args:
        channels: `C` of a cell.

    Attributes:
        count: cells so far.
        total: `(C,)` float64.
        products: `(C, C)` float64, sum of the outer products.
    """

    def __init__(self, channels: int) -> None:
        self.count = 0
        self.total = torch.zeros(channels, dtype=torch.float64)
        self.products = torch.zeros(channels, channels, dtype=torch.float64)

    def add(self, cells: Tensor) -> None:
        """Adds cells `(N, C)`."""
        cells = cells.to(self.total.device, torch.float64)
        self.count += len(cells)
        self.total += cells.sum(dim=0)
        self.products.addmm_(cells.T, cells)


class PCAProjection(nn.Module):
    """A fixed 1x1 convolution: standardises each channel, weighs it, and takes the first principal components.

    Embeddings have mean 0; cosines between them are about those between the standardised features, as the components
    left out hold little. 256 of the 3,072 channels of a ResNet-50's last two stages take a twelfth of the memory of
    whatever reads them.

    Args:
        in_channels: `C`.
        out_channels: `D`, components that are kept; at most `C`.

    Attributes:
        length: root mean square length of an embedding.
        learned: whether there are components; before, embeddings are 0.

    Shapes:
        features `(B, C, H, W)` -> embeddings `(B, D, H, W)`.

    Example:
        >>> moments = Moments(3)
        >>> cells = torch.randn(1000, 3, generator=torch.Generator().manual_seed(0)) * torch.tensor([5.0, 1.0, 1.0]) + 7
        >>> moments.add(cells)
        >>> projection = PCAProjection(3, 3)
        >>> projection.learn(moments)
        >>> projected = projection(cells.T.reshape(1, 3, 10, 100))
        >>> bool((projected.mean(dim=(0, 2, 3)).abs() < 1e-4).all())
        True
    """

    weight: Tensor
    bias: Tensor
    length: Tensor
    learned: Tensor

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        if not 1 <= out_channels <= in_channels:
            remedy = f"give 1 to {in_channels}, the channels of the features"
            raise ArgumentError("embedding_dim", out_channels, remedy)
        self.register_buffer("weight", torch.zeros(out_channels, in_channels))
        self.register_buffer("bias", torch.zeros(out_channels))
        self.register_buffer("length", torch.zeros(()))
        self.register_buffer("learned", torch.zeros((), dtype=torch.bool))

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings `(B, D, H, W)` of features `(B, C, H, W)`."""
        # A mean is taken from each channel, of which half precision would leave few digits.
        with torch.autocast(features.device.type, enabled=False):
            return F.conv2d(features.to(self.weight.dtype), self.weight[:, :, None, None], self.bias)

    @torch.no_grad()
    def learn(self, moments: Moments, channel_weights: Tensor | None = None, *, eps: float = 1e-5) -> None:
        """Takes the components of the cells that were added to `moments`.

        Args:
            moments: of at least two cells.
            channel_weights: `(C,)`, what each standardised channel is multiplied with; `None`: 1.
            eps: added to the variance.

        Raises:
            ArgumentError: for fewer than two cells, or moments that are not finite.
        """
        if moments.count < 2:
            raise ArgumentError("moments", moments.count, "add at least two cells")
        mean = moments.total / moments.count
        covariance = moments.products / moments.count - torch.outer(mean, mean)
        if not torch.isfinite(covariance).all():
            raise ArgumentError("moments", "non-finite", "features must be finite numbers")
        scale = (covariance.diagonal().clamp_min(0) + eps).rsqrt()
        if channel_weights is not None:
            scale = scale * channel_weights.to(scale)
        covariance = covariance * torch.outer(scale, scale)
        # Single precision halves the time of the decomposition, which is cubic in the channels.
        values, vectors = torch.linalg.eigh(covariance.float())
        components = vectors.flip(1)[:, : len(self.weight)].T  # (D, C)
        # The sign of a component is free: its largest entry is positive, so that every machine has the same.
        sign = components.gather(1, components.abs().argmax(dim=1, keepdim=True)).sign()
        weight = (components * sign).double() * scale
        self.weight.copy_(weight)
        self.bias.copy_(-(weight @ mean))
        self.length.copy_(values.flip(0)[: len(self.weight)].clamp_min(0).sum().sqrt())
        self.learned.fill_(True)
