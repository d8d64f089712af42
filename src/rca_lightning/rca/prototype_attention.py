"""Which prototypes the pixels of one photograph read: the attention `S` of equation (7), prototype by prototype."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.inference import MAX_SIDE, multi_scale_flip
from rca_lightning.rca.network import RCANetwork


@dataclass(frozen=True)
class AttentionShares:
    """Shares of the attention of a photograph, one of each of M prototypes; all float64 on the CPU, in `[0, 1]`.

    Attributes:
        drawn: `(M,)`, of the attention of the pixels that are drawn as the prototype's class; NaN where none is.
        everywhere: `(M,)`, of the attention of all pixels; sums to 1.
        strongest: `(M,)`, of the pixels that read this prototype more than any other; sums to 1.
    """

    drawn: Tensor
    everywhere: Tensor
    strongest: Tensor


@dataclass(frozen=True)
class PrototypeAttention:
    """Attention of one photograph over the M prototypes that it may read, on the CPU.

    Attributes:
        attention: `S`, `(M, h, w)` float32 in `[0, 1]`; sums to 1 in each cell.
        labels: `(M,)` int64, what the class of each is in masks: 0 the background, 1..L the classes.
        numbers: `(M,)` int64, number of each among the prototypes of its class, from 0.
    """

    attention: Tensor
    labels: Tensor
    numbers: Tensor

    def shares(self, mask: Tensor) -> AttentionShares:
        """Computes how much of the attention each prototype has, in the photograph and where its class is drawn.

        A pixel reads what the cell reads in which its middle lies.

        Args:
            mask: `(H, W)` integers, on the CPU: 0 background, 1..L the classes, others are of no class.

        Raises:
            ArgumentError: for a mask of another number of axes, or without a pixel.
        """
        if mask.ndim != 2 or not mask.numel():
            raise ArgumentError("mask", tuple(mask.shape), "give (H, W), with a pixel")
        count, height, width = self.attention.shape
        rows, columns = _cells(mask.shape[0], height), _cells(mask.shape[1], width)
        cells = rows[:, None] * width + columns  # (H, W)
        attention = self.attention.flatten(1).double()  # (M, hw)
        pixels = torch.bincount(cells.flatten(), minlength=height * width).double() / mask.numel()  # (hw,)
        drawn = torch.full((count,), torch.nan, dtype=torch.float64)
        for label in set(self.labels.tolist()):
            of_class = torch.bincount(cells[mask == label], minlength=height * width).double()
            if of_class.sum() > 0:
                chosen = self.labels == label
                drawn[chosen] = attention[chosen] @ (of_class / of_class.sum())
        strongest = torch.zeros(count, dtype=torch.float64)
        if count:
            strongest.index_add_(0, attention.argmax(dim=0), pixels)
        return AttentionShares(drawn, attention @ pixels, strongest)


@torch.no_grad()
def infer_prototype_attention(
    network: RCANetwork, image: Tensor, tags: Tensor | None = None, *, scale: float = 1.0, max_side: int = MAX_SIDE
) -> PrototypeAttention | None:
    """Computes the attention of one photograph over each prototype.

    Args:
        network: in evaluation mode.
        image: `(3, H, W)`, normalised.
        tags: `(L,)`; as for `RCANetwork.read`.
        scale: factor on the size of the image.
        max_side: longest side in pixels; see `multi_scale_flip`.

    Returns:
        The attention; `None` without a prototype that may be read.

    Raises:
        ArgumentError: for a scale or a side of which no view can be made.
    """
    ((view, _),) = multi_scale_flip(image[None], scales=(scale,), flip=False, max_side=max_side)
    read = network.prototype_attention(network.stages(view), None if tags is None else tags[None])
    if read is None or not read[1].any():
        return None
    attention, readable = read[0][0], read[1][0]
    aggregation = network.aggregation
    assert aggregation is not None
    classes = aggregation.labels[readable].cpu()
    counts = torch.tensor(aggregation.prototypes_per_class)
    firsts = counts.cumsum(0) - counts  # row of the first prototype of each class
    numbers = torch.nonzero(readable)[:, 0].cpu() - firsts[classes]
    labels = torch.where(classes == aggregation.num_classes, 0, classes + 1)
    return PrototypeAttention(attention[readable].float().cpu(), labels, numbers)


def _cells(pixels: int, cells: int) -> Tensor:
    """The cell in which the middle of each pixel lies, `(pixels,)` int64."""
    return (2 * torch.arange(pixels) + 1) * cells // (2 * pixels)
