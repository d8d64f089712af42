"""The loss of RCA: `CE(P) + beta * CE(P^) + alpha * InfoNCE` (RCA, section 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.arguments import check_arguments
from rca_lightning.distributed import sum_over_ranks, world_size_and_rank
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.cam import image_logits
from rca_lightning.rca.contrast import Positives, RegionContrastLoss
from rca_lightning.rca.memory_bank import RegionMemory
from rca_lightning.rca.network import ActivationMaps
from rca_lightning.rca.regions import Regions


@dataclass
class Losses:
    """Losses of one batch.

    Attributes:
        total: what is minimised. In a distributed run its average over processes is the loss of all their images.
        value: the loss of the images of all processes, detached.
        parts: the losses it is made of, not weighted, of the images of all processes, detached.
    """

    total: Tensor
    value: Tensor
    parts: dict[str, Tensor]


@dataclass
class AddedLoss:
    """A loss beside those of RCA.

    Attributes:
        name: under which it is logged.
        weight: what it is multiplied with in the total.
        minimised: as `means_over_ranks` returns it, with its graph.
        value: the same of all processes, detached.
        watched: tensors by name that must be finite for the batch to count.
    """

    name: str
    weight: float
    minimised: Tensor
    value: Tensor
    watched: dict[str, Tensor]

    def to(self, losses: Losses) -> Losses:
        """The losses with this one among them."""
        return Losses(
            losses.total + self.weight * self.minimised,
            losses.value + self.weight * self.value,
            {**losses.parts, self.name: self.value},
        )


class RCALoss(nn.Module):
    """`CE(P) + beta * CE(P^) + alpha * InfoNCE`, equation (9) of docs/method.md (RCA, section 3).

    Args:
        alpha: weight of the contrast.
        beta: weight of the classification loss of the second head.
        temperature: of the contrast.
        positives: what a region is drawn to; see `region_contrast_loss`.
    """

    @check_arguments
    def __init__(
        self, *, alpha: float = 0.01, beta: float = 1.0, temperature: float = 0.1, positives: Positives = "all"
    ) -> None:
        super().__init__()
        self.alpha = alpha
        self.beta = beta
        self.contrast = RegionContrastLoss(temperature, positives)

    def forward(
        self,
        maps: ActivationMaps,
        tags: Tensor,
        regions: Regions | None = None,
        memory: RegionMemory | None = None,
        prototypes: SemanticAggregation | None = None,
    ) -> Losses:
        """Losses of a batch. In a distributed run every process must call it.

        Args:
            maps: what the network computed of it.
            tags: `(B, L)`, 0 or 1.
            regions: of the batch; `None` for a plain CAM.
            memory: what the regions are contrasted with; `None`: no contrast yet.
            prototypes: positives of the contrast where these are prototypes.
        """
        means = {"coarse": classification_loss(maps.coarse, tags)}
        counts: dict[str, Tensor | int] = {"coarse": len(tags)}
        if maps.refined is not None:
            means["refined"], counts["refined"] = classification_loss(maps.refined, tags), len(tags)
        if regions is not None:
            per_region, usable = self._contrast(regions, tags, memory, prototypes)
            counts["contrast"] = usable.sum()
            means["contrast"] = per_region.sum() / usable.sum().clamp_min(1)
        weights = {"coarse": 1.0, "refined": self.beta, "contrast": self.alpha}
        minimised, values = means_over_ranks(means, counts)
        total = torch.stack([weights[name] * part for name, part in minimised.items()]).sum()
        value = torch.stack([weights[name] * part for name, part in values.items()]).sum()
        return Losses(total, value, values)

    def _contrast(
        self, regions: Regions, tags: Tensor, memory: RegionMemory | None, prototypes: SemanticAggregation | None
    ) -> tuple[Tensor, Tensor]:
        """InfoNCE of each region, and whether it counts."""
        if memory is None:
            # Tied to the embeddings also while idle: DDP wants every parameter in every step.
            return regions.embeddings.sum(dim=1) * 0, torch.zeros_like(regions.labels, dtype=torch.bool)
        # The background is nobody's negative: as one it cost seeds wherever it was measured.
        absent = F.pad(tags[regions.images] <= 0, (0, memory.num_classes - tags.shape[1]), value=False)  # (R, C)
        own = (None, None) if prototypes is None else prototypes.by_class()
        return self.contrast.by_region(
            regions.embeddings, regions.labels, absent, memory.embeddings, memory.valid, *own
        )


def classification_loss(maps: Tensor, tags: Tensor) -> Tensor:
    """Binary cross-entropy of the image logits of activation maps: `CE(P)` in equation (9) of docs/method.md.

    Args:
        maps: activation maps `(B, L, H, W)`; their spatial mean gives the logits.
        tags: `(B, L)`, 0 or 1.

    Returns:
        A scalar: binary cross-entropy, averaged over images and classes.
    """
    return F.binary_cross_entropy_with_logits(image_logits(maps), tags.float())


def means_over_ranks(
    means: Mapping[str, Tensor], counts: Mapping[str, Tensor | int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses whose average over processes is the mean over what all of them have.

    `DistributedDataParallel` averages gradients over processes as if each had as many regions (or pixels, or images)
    as the others. A mean is therefore multiplied by the share of its process. One collective; every process calls it.

    Args:
        means: scalars by name, each the mean over what this process has.
        counts: over how many; where it is 0 the mean counts for nothing.

    Returns:
        The means to minimise, with their graph, and the means over all processes, detached. Of a single process both
        are what was given.

    Example:
        >>> minimised, value = means_over_ranks({"pixels": torch.tensor(2.0)}, {"pixels": 10})
        >>> float(minimised["pixels"]), float(value["pixels"])
        (2.0, 2.0)
    """
    processes, _ = world_size_and_rank()
    if processes == 1:
        return dict(means), {name: mean.detach() for name, mean in means.items()}
    own = torch.stack([mean.detach().float() for mean in means.values()])  # (P,)
    number = torch.stack([torch.as_tensor(counts[name], device=own.device).float() for name in means])
    total, summed = sum_over_ranks(torch.stack([number, torch.where(number > 0, own * number, 0)]))
    total = total.clamp_min(1)
    share = number * processes / total
    values = dict(zip(means, summed / total, strict=True))
    return {name: mean * share[index] for index, (name, mean) in enumerate(means.items())}, values
