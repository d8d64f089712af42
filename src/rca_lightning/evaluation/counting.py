"""Counts the pixels of images one by one on their device, and gathers the counts of all ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.distributed import gather_objects, gather_uneven
from rca_lightning.evaluation.image_counts import ImageCounts

BAND_SHARE = 0.01
"""Width of the band on each side of an outline, as a share of the diagonal of the image; at least one pixel."""


def near_outlines(mask: Tensor) -> Tensor:
    """Pixels of a band along the outlines of a mask, where a neighbour in row or column has another label.

    The band is 1 % of the diagonal wide on each side, 6 pixels of a photograph of 500 x 375. Distance is the larger of
    those in rows and in columns. Void is a label here, so the band also lies along the void rim of an object in VOC.

    Args:
        mask: `(H, W)` integer.

    Returns:
        `(H, W)` bool.

    Example:
        >>> near_outlines(torch.tensor([[0, 0, 0, 1, 1, 1]])).int().tolist()
        [[0, 0, 1, 1, 0, 0]]
    """
    edge = torch.zeros(mask.shape, dtype=torch.bool, device=mask.device)
    rows, columns = mask[1:] != mask[:-1], mask[:, 1:] != mask[:, :-1]
    edge[1:] |= rows
    edge[:-1] |= rows
    edge[:, 1:] |= columns
    edge[:, :-1] |= columns
    reach = max(1, round(BAND_SHARE * math.hypot(*mask.shape))) - 1
    if reach == 0 or edge.numel() == 0:
        return edge
    wide = edge.float()[None]
    for size, padding in (((1, 2 * reach + 1), (0, reach)), ((2 * reach + 1, 1), (reach, 0))):
        wide = F.max_pool2d(wide, size, stride=1, padding=padding)
    return wide[0] > 0


class ImageCounter:
    """Counts the scored pixels of each image that is added.

    Args:
        num_classes: foreground classes `L`.
        thresholds: background thresholds of seeds, ascending; none for label images.
    """

    def __init__(self, num_classes: int, thresholds: Sequence[float] = ()) -> None:
        self.num_classes = num_classes
        self.thresholds = tuple(thresholds)
        self.reset()

    def __len__(self) -> int:
        return len(self._ids)

    def reset(self) -> None:
        """Forgets the images that were added."""
        self._ids: list[str | None] = []
        self._cells: list[Tensor] = []

    def add(
        self, image_id: str | None, mask: Tensor, true: Tensor, drawn: Tensor, interval: Tensor | None = None
    ) -> None:
        """Counts an image.

        Args:
            image_id: its name; `None` if it has none, so that it is no image that was counted already.
            mask: `(H, W)`.
            true: `(P,)` int64, class of each pixel of the mask that is not void.
            drawn: `(P,)` int64; see `ImageCounts`.
            interval: `(P,)` int64, of seeds.
        """
        columns, intervals = self.num_classes + 2, len(self.thresholds) + 1
        cell = (true * columns + drawn) * intervals + (0 if interval is None else interval)
        near = near_outlines(mask)[mask != IGNORE_INDEX]
        size = (self.num_classes + 1) * columns * intervals
        if size <= cell.numel():
            pixels, close = (torch.bincount(part, minlength=size) for part in (cell, cell[near]))
            found = torch.nonzero(pixels)[:, 0]
            pixels, close = pixels[found], close[found]
        else:  # of hundreds of classes, most of whose cells have no pixel
            found, place, pixels = torch.unique(cell, return_inverse=True, return_counts=True)
            close = torch.bincount(place[near], minlength=len(found))
        label = found // intervals
        parts = (label // columns, label % columns, found % intervals, pixels, close)
        self._ids.append(image_id)
        self._cells.append(torch.stack(parts, dim=1).to("cpu", torch.int32))

    def gather(self, device: torch.device, *, over_ranks: bool = True) -> ImageCounts | None:
        """Counts of all ranks, the same on each, which all must call it; `None` if no image was added on any.

        An image that comes again, as samplers may repeat some to give every rank as many, counts once.

        Args:
            device: where tensors are exchanged.
            over_ranks: False: the counts of this process alone.
        """
        lengths = torch.tensor([len(cells) for cells in self._cells], dtype=torch.int64)
        rows = torch.cat(self._cells) if self._cells else torch.zeros(0, 5, dtype=torch.int32)
        gathered: list[list[str | None]] = [self._ids]
        if over_ranks:
            rows, lengths = (gather_uneven(part.to(device))[0].cpu() for part in (rows, lengths))
            gathered = gather_objects(self._ids)
        ids = [name for of_rank in gathered for name in of_rank]
        if not ids:
            return None
        names = [f"image {number}" if name is None else name for number, name in enumerate(ids)]
        begins = (torch.cumsum(lengths, 0) - lengths).tolist()
        first = {name: number for number, name in reversed(list(enumerate(names)))}  # of repeated ones the first
        order = sorted(first)
        parts = [rows[begins[first[name]] : begins[first[name]] + int(lengths[first[name]])] for name in order]
        true, drawn, interval, pixels, near = torch.cat(parts).numpy().T
        counts = [len(part) for part in parts]
        return ImageCounts(
            ids=tuple(order),
            num_classes=self.num_classes,
            thresholds=self.thresholds,
            image=np.repeat(np.arange(len(order), dtype=np.int32), counts),
            true=true,
            drawn=drawn,
            interval=interval,
            pixels=pixels,
            near=near,
        )
