"""Training batches of cached features."""

from __future__ import annotations

import torch
from frozen.features import CachedSplit
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rca_lightning.data.sample import Sample


class FeatureWindows(Dataset[Sample]):
    """A random window of each image's features, half of them mirrored: what cropping and flipping come to here.

    Args:
        split: the features.
        cells: side of a window.
    """

    def __init__(self, split: CachedSplit, cells: int) -> None:
        self.split = split
        self.cells = cells

    def __len__(self) -> int:
        return len(self.split.ids)

    def __getitem__(self, index: int) -> Sample:
        window = self._window(self.split.stages[index]).float()
        if torch.rand(()) < 0.5:
            window = window.flip(2)
        return {"image": window, "tags": self.split.tags[index], "image_id": self.split.ids[index]}

    def _window(self, features: Tensor) -> Tensor:
        """Part of `(D, h, w)` with sides of `cells`; a shorter side is filled up with its mirror image."""
        for side in (1, 2):
            while features.shape[side] < self.cells:
                features = torch.cat([features, features.flip(side)], dim=side)
            start = int(torch.randint(features.shape[side] - self.cells + 1, ()))
            features = features.narrow(side, start, self.cells)
        return features


def window_loader(split: CachedSplit, *, cells: int, batch_size: int) -> DataLoader[Sample]:
    """Shuffled full batches; the order and the windows follow torch's random state."""
    return DataLoader(FeatureWindows(split, cells), batch_size=batch_size, shuffle=True, drop_last=True)
