"""Which regions of a batch are worth remembering."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.rca.cam import image_logits
from rca_lightning.rca.network import ActivationMaps
from rca_lightning.rca.regions import Regions, background_regions, pool_regions


@torch.no_grad()
def select_for_memory(
    regions: Regions,
    maps: ActivationMaps,
    located: Tensor,
    tags: Tensor,
    *,
    confidence: float,
    background_threshold: float | None,
) -> Regions:
    """Regions of confidently classified tags and of confidently empty cells, detached.

    Args:
        regions: of the tagged classes.
        maps: of the batch.
        located: `(B, L, H, W)`, the maps the regions were cut from.
        tags: `(B, L)`.
        confidence: image probability a tag must reach; the region of a class the network does not see in the
            image is some other part of the image.
        background_threshold: see `background_regions`; `None`: no background.

    Returns:
        The regions; those of the background have label `L`.
    """
    probabilities = image_logits(maps.coarse).sigmoid()
    kept = regions.select(probabilities[regions.images, regions.labels] >= confidence)
    if background_threshold is not None:
        empty = background_regions(located, tags, background_threshold)
        background = pool_regions(maps.embeddings, empty, min_cells=2)
        background.labels = torch.full_like(background.labels, tags.shape[1])
        kept = Regions.cat(kept, background)
    return Regions(kept.embeddings.detach(), kept.labels, kept.images)
