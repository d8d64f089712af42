"""Semantic contrast: InfoNCE of regions against the memory (RCA, section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.errors import ArgumentError


def region_contrast_loss(
    embeddings: Tensor,
    labels: Tensor,
    absent: Tensor,
    memory: Tensor,
    valid: Tensor,
    temperature: float = 0.1,
) -> Tensor:
    r"""InfoNCE of each region against every valid slot of the memory.

    For a region `f` of class `l`, with positives `m+` (valid slots of `l`) and negatives `m-` (valid
    slots of classes absent from its image):
    `mean over m+ of -log( exp(f m+ / t) / (exp(f m+ / t) + sum over m- of exp(f m- / t)) )`,
    averaged over the regions that have both a positive and a negative.

    Args:
        embeddings: `(R, D)`; normalised here.
        labels: `(R,)` class of each region.
        absent: `(R, C)` boolean; classes absent from the region's image. A class that is in the
            image is no negative, also where another region of it is meant.
        memory: `(C, N, D)` unit vectors; no gradient flows into it.
        valid: `(C, N)` boolean, slots in use.
        temperature: `t`, above 0.

    Returns:
        A scalar; 0, still tied to `embeddings`, when no region has both kinds of slots.
    """
    queries = F.normalize(embeddings.float(), dim=1)
    with torch.autocast(queries.device.type, enabled=False):  # half precision is coarse once divided by `t`
        similarity = torch.einsum("rd,cnd->rcn", queries, memory.detach().float()) / temperature
    lowest = torch.finfo(similarity.dtype).min
    is_negative = absent[:, :, None] & valid[None]  # (R, C, N)
    negatives = similarity.masked_fill(~is_negative, lowest).flatten(1).logsumexp(dim=1)  # (R,)
    positives = similarity[torch.arange(len(labels), device=labels.device), labels]  # (R, N)
    is_positive = valid[labels]  # (R, N)
    # -log(e^p / (e^p + e^n)) = softplus(n - p), without overflow at small temperatures.
    per_slot = F.softplus(negatives[:, None] - positives) * is_positive
    per_region = per_slot.sum(dim=1) / is_positive.sum(dim=1).clamp_min(1)
    usable = is_positive.any(dim=1) & is_negative.flatten(1).any(dim=1)
    per_region = torch.where(usable, per_region, embeddings.float().sum(dim=1) * 0)
    return per_region.sum() / usable.sum().clamp_min(1)


class RegionContrastLoss(nn.Module):
    """`region_contrast_loss` with its temperature.

    Args:
        temperature: `tau`, above 0. 0.1 is the usual value of supervised contrast; the lower it is, the more
            the hardest negatives decide.
    """

    def __init__(self, temperature: float = 0.1) -> None:
        super().__init__()
        if temperature <= 0:
            raise ArgumentError("contrast_temperature", temperature, "give a number above 0")
        self.temperature = temperature

    def forward(self, embeddings: Tensor, labels: Tensor, absent: Tensor, memory: Tensor, valid: Tensor) -> Tensor:
        """See `region_contrast_loss`."""
        return region_contrast_loss(embeddings, labels, absent, memory, valid, self.temperature)
