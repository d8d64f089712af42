"""Context from the object regions of the same image."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.rca.context import ContextModule, attend, gather, present_classes


class ObjectContext(ContextModule):
    """Object-contextual representations: pixels attend to soft regions of the classes in their own image.

    Region of class k: softmax of the coarse map over the positions, `m_k`. Its representation:
    `f_k = sum_i m_ki x_i`. Context of pixel i: `rho(sum_k softmax_k(phi(x_i) psi(f_k) / sqrt(d)) delta(f_k))`, with
    phi, psi, delta and rho a linear layer, normalisation and ReLU each. OCR: Yuan et al., ECCV 2020, arXiv 1909.11065,
    with the CAM in place of the supervised coarse segmentation, and without the 3x3 convolution to 512 channels in
    front, which alone would cost 9.4 M parameters.

    The normalisation is a LayerNorm over the channels, not a BatchNorm: regions are few in a batch, and with it
    training and prediction compute the same.

    Absent classes have a region as well, where their map is highest: OCR reads all, and by default so do pixels here.
    CAMs have no map of the background, which is a class like others to OCR; minus the highest of the maps stands in.
    Without it, in an image with one tag and `tags_only`, all pixels would read the same.

    Args:
        in_channels: channels of the features.
        key_channels: `d`, also the channels of the context.
        tags_only: whether pixels read only the regions of the tags, or of the probable classes where tags are unknown.
            Who may read nothing gets `rho(0)`.
        background: whether the background is a region too; every pixel may read it.

    Example:
        >>> context = ObjectContext(in_channels=16, key_channels=4)
        >>> context(torch.randn(2, 16, 5, 7), torch.randn(2, 3, 5, 7)).shape
        torch.Size([2, 4, 5, 7])
    """

    def __init__(
        self, in_channels: int, key_channels: int = 256, tags_only: bool = False, background: bool = True
    ) -> None:
        super().__init__()
        self.context_channels = key_channels
        self.tags_only = tags_only
        self.background = background
        self.pixel_query = _transform(in_channels, key_channels)  # phi
        self.region_key = _transform(in_channels, key_channels)  # psi
        self.region_value = _transform(in_channels, key_channels)  # delta
        self.output = _transform(key_channels, key_channels)  # rho

    def forward(self, features: Tensor, coarse: Tensor, tags: Tensor | None = None) -> Tensor:
        """See `ContextModule.forward`."""
        batch, _, height, width = features.shape
        readable = present_classes(coarse, tags) if self.tags_only else None
        maps = coarse.float()
        if self.background:
            maps, readable = _with_background(maps, readable)
        regions = gather(maps, features).to(features.dtype)  # (B, K, C)
        cells = features.flatten(2).transpose(1, 2)  # (B, C, H, W) -> (B, HW, C)
        read = attend(self.pixel_query(cells), self.region_key(regions), self.region_value(regions), readable)
        context: Tensor = self.output(read).transpose(1, 2)  # (B, HW, d) -> (B, d, HW)
        return context.reshape(batch, -1, height, width)


def _transform(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(channels_in, channels_out, bias=False), nn.LayerNorm(channels_out), nn.ReLU())


def _with_background(maps: Tensor, readable: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The maps with that of the background as last, `(B, L + 1, H, W)`, and it among what may be read."""
    shown = maps
    if readable is not None:
        shown = maps.masked_fill(~readable[:, :, None, None], torch.finfo(maps.dtype).min)
        readable = F.pad(readable, (0, 1), value=True)
    return torch.cat([maps, -shown.amax(dim=1, keepdim=True)], dim=1), readable
