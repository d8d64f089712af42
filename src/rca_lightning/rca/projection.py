"""Projection of features onto the principal components of their standardised channels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.distributed import broadcast_from_first
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
        channel_weights: `(C,)`, what each standardised channel is multiplied with; `None`: 1.

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
    channel_weights: Tensor | None

    def __init__(self, in_channels: int, out_channels: int, channel_weights: Tensor | None = None) -> None:
        super().__init__()
        if not 1 <= out_channels <= in_channels:
            remedy = f"give 1 to {in_channels}, the channels of the features"
            raise ArgumentError("embedding_dim", out_channels, remedy)
        self.register_buffer("weight", torch.zeros(out_channels, in_channels))
        self.register_buffer("bias", torch.zeros(out_channels))
        self.register_buffer("length", torch.zeros(()))
        self.register_buffer("learned", torch.zeros((), dtype=torch.bool))
        self.register_buffer("channel_weights", channel_weights, persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        """Embeddings `(B, D, H, W)` of features `(B, C, H, W)`."""
        # A mean is taken from each channel, of which half precision would leave few digits.
        with torch.autocast(features.device.type, enabled=False):
            return F.conv2d(features.to(self.weight.dtype), self.weight[:, :, None, None], self.bias)

    @torch.no_grad()
    def learn(self, moments: Moments, *, eps: float = 1e-5) -> None:
        """Takes the components of the cells that were added to `moments`.

        Args:
            moments: of at least two cells.
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
        if self.channel_weights is not None:
            scale = scale * self.channel_weights.to(scale)
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


def project(projections: Sequence[PCAProjection], features: Sequence[Tensor]) -> list[Tensor]:
    """Projects maps `(B, C_k, h_k, w_k)`, each by its own projection, to `(B, D_k, h_k, w_k)`.

    Channels beyond those that a projection reads stay as they are, behind the projected ones.
    """
    return [_project(projection, one) for projection, one in zip(projections, features, strict=True)]


def _project(projection: PCAProjection, features: Tensor) -> Tensor:
    read = projection.weight.shape[1]
    if features.shape[1] == read:
        projected: Tensor = projection(features)
        return projected
    projected = projection(features[:, :read])
    return torch.cat([projected, features[:, read:].to(projected.dtype)], dim=1)


def are_learned(projections: Sequence[PCAProjection]) -> bool:
    """Tells whether there are projections and all have their components."""
    return len(projections) > 0 and all(bool(projection.learned) for projection in projections)


def projections_state(projections: Sequence[PCAProjection]) -> dict[str, Tensor]:
    """Returns the tensors of projections: `pca.*` of the first, `pca1.*`, `pca2.*`, ... of further ones."""
    state: dict[str, Tensor] = {}
    for level, projection in enumerate(projections):
        state |= projection.state_dict(prefix=_prefix(level))
    return state


def load_projections(projections: Sequence[PCAProjection], state: Mapping[str, Tensor] | None) -> bool:
    """Takes the tensors that `projections_state` has returned; returns whether they are those of such projections."""
    own = {name: value.shape for name, value in projections_state(projections).items()}
    if not own or state is None or {name: value.shape for name, value in state.items()} != own:
        return False
    if not all(bool(torch.isfinite(value).all()) for value in state.values()):
        return False
    if not all(bool(state[f"{_prefix(level)}learned"]) for level in range(len(projections))):
        return False
    for level, projection in enumerate(projections):
        prefix = _prefix(level)
        projection.load_state_dict({name: state[f"{prefix}{name}"] for name in projection.state_dict()})
    return True


@torch.no_grad()
def learn_projections(projections: Sequence[PCAProjection], moments: Sequence[Moments] | None) -> None:
    """Learns the components of projections on the first rank; every rank has to call it.

    Args:
        projections: each is given the components of the first rank.
        moments: of the features of each; `None` on other ranks, and where the first has its components already.

    Raises:
        ArgumentError: for no projection.
    """
    if not projections:
        raise ArgumentError("projection", "learned", "there are components only with projection='pca'")
    if moments is not None:
        for projection, of_level in zip(projections, moments, strict=True):
            projection.learn(of_level)
    for projection in projections:
        broadcast_from_first(projection.weight, projection.bias, projection.length)
        projection.learned.fill_(True)


def _prefix(level: int) -> str:
    return f"pca{level or ''}."
