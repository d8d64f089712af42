"""Scores of one evaluation run: seeds, and the classification they rest on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchmetrics.functional.classification import binary_average_precision

from rca_lightning.distributed import gather_uneven
from rca_lightning.metrics import SeedIoU, SeedScores
from rca_lightning.pseudo_labels.multiscale import Seeds
from rca_lightning.score_content import score_content

TagSource = Literal["image", "predicted"]


@dataclass
class EvaluationResult:
    """What one pass over a split gave.

    Attributes:
        images: how many images were scored.
        seeds: scores of the seeds.
        classification_map: mean average precision of the image probabilities over classes that occur.
    """

    images: int
    seeds: SeedScores
    classification_map: float

    def logged(self, tags: TagSource, prefix: str) -> dict[str, float]:
        """Numbers for the logger; whether true tags were used is part of the name."""
        return {
            f"{prefix}/seed_miou/{tags}_tags": self.seeds.miou,
            f"{prefix}/seed_threshold/{tags}_tags": self.seeds.threshold,
            f"{prefix}/classification_map": self.classification_map,
        }

    def as_dict(self, *, split: str, tags: TagSource, class_names: list[str]) -> dict[str, Any]:
        """The content of `validate.json`; NaN becomes null."""
        return score_content(
            self.seeds,
            split=split,
            images=self.images,
            tags=tags,
            class_names=class_names,
            threshold=self.seeds.threshold,
            curve=self.seeds.curve,
            classification_map=self.classification_map,
        )


class Evaluation(nn.Module):
    """Collects scores image by image, exact over all ranks.

    Args:
        num_classes: foreground classes `L`.
        fixed_threshold: see `SeedIoU`.
    """

    none: Tensor

    def __init__(self, num_classes: int, fixed_threshold: float | None = None) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.fixed_threshold = fixed_threshold
        # Made when the first mask comes: of a thousand classes its table takes 160 MB.
        self.seed_iou: SeedIoU | None = None
        self.register_buffer("none", torch.zeros(0, num_classes), persistent=False)
        self.probabilities: list[Tensor] = []
        self.tags: list[Tensor] = []
        self.last_result: EvaluationResult | None = None

    def update(self, seeds: list[Seeds], tags: Tensor, masks: Tensor | None) -> None:
        """Add a batch; one without masks is passed over.

        Args:
            seeds: of each image.
            tags: true tags `(B, L)`.
            masks: `(B, H, W)`, or `None`.
        """
        if masks is None:
            return
        metric = self._metric()
        for image, mask in zip(seeds, masks, strict=True):
            metric.update(image.maps, mask, image.classes)
        self.probabilities.extend(image.probabilities for image in seeds)
        self.tags.extend(tags > 0)

    def finish(self) -> EvaluationResult | None:
        """Scores over all ranks, then start anew; `None` when no image had a mask on any rank."""
        probabilities = torch.stack(self.probabilities) if self.probabilities else self.none
        tags = torch.stack(self.tags) if self.tags else self.none.bool()
        probabilities, present = gather_uneven(probabilities, tags.to(torch.uint8))
        self.last_result = None
        if len(present):
            average_precision = mean_average_precision(probabilities, present.long())
            self.last_result = EvaluationResult(len(present), self._metric().compute(), average_precision)
        self.reset()
        return self.last_result

    def reset(self) -> None:
        """Forget what was added; the last result stays."""
        if self.seed_iou is not None:
            self.seed_iou.reset()
        self.probabilities.clear()
        self.tags.clear()

    def _metric(self) -> SeedIoU:
        if self.seed_iou is None:
            self.seed_iou = SeedIoU(self.num_classes, fixed_threshold=self.fixed_threshold).to(self.none.device)
        return self.seed_iou


def mean_average_precision(probabilities: Tensor, tags: Tensor) -> float:
    """Mean over the classes that occur of their average precision; NaN if none does.

    Args:
        probabilities: `(I, L)`.
        tags: `(I, L)` int64, 0 or 1.
    """
    occurs = (tags > 0).any(dim=0)
    per_class = [binary_average_precision(probabilities[:, c], tags[:, c]) for c in torch.nonzero(occurs)[:, 0]]
    return float(torch.stack(per_class).mean()) if per_class else float("nan")
