"""From class maps to a label image: where the background begins."""

from __future__ import annotations

import torch
from torch import Tensor


def threshold_background(maps: Tensor, threshold: float) -> Tensor:
    """Label each pixel with its strongest class, or with background where none exceeds the threshold.

    Args:
        maps: `(L, H, W)` in `[0, 1]`.
        threshold: in `[0, 1]`; a pixel whose strongest map is not above it is background.

    Returns:
        `(H, W)` uint8: 0 background, class index + 1 elsewhere.
    """
    if len(maps) == 0:
        return torch.zeros(maps.shape[1:], dtype=torch.uint8, device=maps.device)
    strength, label = maps.max(dim=0)
    return torch.where(strength > threshold, label + 1, torch.zeros_like(label)).to(torch.uint8)
