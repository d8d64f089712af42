"""What RCA minimises, and which regions of a batch the memory takes in on the way."""

from __future__ import annotations

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.losses.classification import classification_loss
from rca_lightning.losses.contrast import Positives, RegionContrastLoss
from rca_lightning.memory.bank import RegionMemory
from rca_lightning.models.aggregation import SemanticAggregation
from rca_lightning.models.memorable import memorable_regions
from rca_lightning.models.network import ActivationMaps, RegionMap
from rca_lightning.models.regions import RegionRule, Regions, pool_regions, pseudo_regions


@dataclass
class Objective:
    """Losses of one batch.

    Attributes:
        total: what is minimised.
        parts: each loss, not weighted, detached.
        regions: what the memory takes in, detached; `None` where no memory is wanted.
    """

    total: Tensor
    parts: dict[str, Tensor]
    regions: Regions | None = None


class RCALoss(nn.Module):
    """`CE(P) + beta * CE(P^) + alpha * InfoNCE` (RCA, CVPR 2022, arXiv 2203.09653, section 3).

    Args:
        alpha: weight of the contrast.
        beta: weight of the classification loss of the second head.
        temperature: of the contrast.
        positives: what a region is drawn to; see `region_contrast_loss`.
        region_threshold: see `pseudo_regions`.
        region_rule: see `pseudo_regions`.
        region_map: see `ActivationMaps.located`.
        confidence: image probability a tag must reach before its region may be remembered.
        background_threshold: see `background_regions`; `None`: no background in the memory.
    """

    def __init__(
        self,
        *,
        alpha: float = 0.01,
        beta: float = 1.0,
        temperature: float = 0.1,
        positives: Positives = "all",
        region_threshold: float = 0.5,
        region_rule: RegionRule = "fixed",
        region_map: RegionMap = "attention",
        confidence: float = 0.5,
        background_threshold: float | None = 0.05,
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.contrast = RegionContrastLoss(temperature, positives)
        self.region_threshold = region_threshold
        self.region_rule: RegionRule = region_rule
        self.region_map: RegionMap = region_map
        self.confidence = confidence
        self.background_threshold = background_threshold

    def forward(
        self,
        maps: ActivationMaps,
        tags: Tensor,
        *,
        remember: bool = True,
        memory: RegionMemory | None = None,
        prototypes: SemanticAggregation | None = None,
    ) -> Objective:
        """Losses of a batch.

        Args:
            maps: what the network computed of it.
            tags: `(B, L)`, 0 or 1.
            remember: whether regions are pooled at all; a plain CAM needs none.
            memory: what regions are contrasted with; `None`: no contrast yet.
            prototypes: positives of the contrast where these are prototypes.
        """
        parts = {"coarse": classification_loss(maps.coarse, tags)}
        total = parts["coarse"]
        if maps.refined is not None:
            parts["refined"] = classification_loss(maps.refined, tags)
            total = total + self.beta * parts["refined"]
        if not remember:
            return Objective(total, _detached(parts))
        located = maps.located(self.region_map)
        masks = pseudo_regions(located, tags, self.region_threshold, self.region_rule)
        regions = pool_regions(maps.embeddings, masks)
        # Tied to the embeddings also while idle: DDP wants every parameter in every step.
        parts["contrast"] = regions.embeddings.sum() * 0
        if memory is not None:
            parts["contrast"] = parts["contrast"] + self._contrast(regions, tags, memory, prototypes)
        total = total + self.alpha * parts["contrast"]
        kept = memorable_regions(
            regions, maps, located, tags, confidence=self.confidence, background_threshold=self.background_threshold
        )
        return Objective(total, _detached(parts), kept)

    def _contrast(
        self, regions: Regions, tags: Tensor, memory: RegionMemory, prototypes: SemanticAggregation | None
    ) -> Tensor:
        # The background is nobody's negative: as one it cost seeds wherever it was measured.
        absent = F.pad(tags[regions.images] <= 0, (0, memory.num_classes - tags.shape[1]), value=False)  # (R, C)
        found = prototypes.by_class() if prototypes is not None else (None, None)
        loss: Tensor = self.contrast(
            regions.embeddings, regions.labels, absent, memory.embeddings, memory.valid, *found
        )
        return loss


def _detached(parts: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in parts.items()}
