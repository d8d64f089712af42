"""The loss of a segmentation network."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rca_lightning.metrics import IGNORE_INDEX


def pixel_cross_entropy(logits: Tensor, mask: Tensor) -> Tensor:
    """Mean cross-entropy of the pixels that have a label, in float32.

    Args:
        logits: `(B, L + 1, h, w)`, enlarged bilinearly to the size of the mask.
        mask: `(B, H, W)` int64: 0 background, 1..L, 255 no label.

    Returns:
        The mean, a scalar; 0 with gradients of 0 where no pixel has a label.

    Example:
        >>> import torch
        >>> pixel_cross_entropy(torch.zeros(1, 4, 2, 2), torch.tensor([[[0, 255], [3, 255]]]))
        tensor(1.3863)
    """
    enlarged = F.interpolate(logits.float(), size=mask.shape[1:], mode="bilinear", align_corners=False)
    total = F.cross_entropy(enlarged, mask, ignore_index=IGNORE_INDEX, reduction="sum")
    return total / (mask != IGNORE_INDEX).sum().clamp_min(1)
