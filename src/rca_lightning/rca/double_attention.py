"""Context from descriptors of the whole image: gathered from all pixels, handed back to each."""

from __future__ import annotations

from torch import Tensor, nn

from rca_lightning.rca.context import ContextModule, gather


class DoubleAttention(ContextModule):
    """The double attention block of A2-Nets: `Z = [A softmax_p(B)^T] softmax_n(V)`.

    `A`, `B` and `V` are 1x1 convolutions of the features. First attention: each of `N` descriptors is a mean of `A`
    over the positions p, weighted by softmax over them. Second: each pixel mixes the descriptors, weighted by softmax
    over them. Chen et al., NeurIPS 2018, arXiv 1810.11579, without the last convolution and the residual:
    the second CAM head reads features and context side by side and is linear itself.

    No convolution has a bias: on B it would drop out of the softmax, on A it would add the same to every cell. Neither
    classes nor tags are looked at.

    Args:
        in_channels: channels of the features.
        channels: of `A`, thus of the context.
        descriptors: `N`; 256 is about as many as a pixel has prototypes to read from (20 x 10 + 64 on VOC 2012).

    Example:
        >>> import torch
        >>> context = DoubleAttention(in_channels=16, channels=6, descriptors=4)
        >>> context(torch.randn(2, 16, 5, 7)).shape
        torch.Size([2, 6, 5, 7])
    """

    def __init__(self, in_channels: int, channels: int = 256, descriptors: int = 256) -> None:
        super().__init__()
        self.context_channels = channels
        self.content = nn.Conv2d(in_channels, channels, 1, bias=False)  # A
        self.gathering = nn.Conv2d(in_channels, descriptors, 1, bias=False)  # B
        self.distribution = nn.Conv2d(in_channels, descriptors, 1, bias=False)  # V

    def forward(self, features: Tensor, coarse: Tensor | None = None, tags: Tensor | None = None) -> Tensor:
        """See `ContextModule.forward`."""
        batch, _, height, width = features.shape
        descriptors = gather(self.gathering(features), self.content(features))  # (B, N, channels)
        shares = self.distribution(features).flatten(2).float().softmax(dim=1)  # (B, N, H, W) -> (B, N, HW)
        context: Tensor = descriptors.transpose(1, 2) @ shares  # (B, channels, HW)
        return context.reshape(batch, -1, height, width)
