"""The image classification loss."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from rca_lightning.models.cam import image_logits


def classification_loss(maps: Tensor, tags: Tensor) -> Tensor:
    """Multi-label soft margin loss of the image logits of activation maps: `CE(P)` (RCA, equation 1).

    Args:
        maps: activation maps `(B, L, H, W)`; their spatial mean gives the logits.
        tags: `(B, L)`, 0 or 1.

    Returns:
        A scalar: binary cross-entropy, averaged over images and classes.
    """
    return F.binary_cross_entropy_with_logits(image_logits(maps), tags.float())
