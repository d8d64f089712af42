"""The score of label images over a whole split: pseudo labels, or the masks of a segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.distributed import gather_uneven
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.report import number, score_content


@dataclass
class LabelScores:
    """Scores of one split; class 0 is the background.

    Attributes:
        miou: mean IoU over classes that occur in the masks or the labels.
        iou: `(L + 1,)`; NaN for a class in neither masks nor labels.
        precision: `(L + 1,)`; NaN for a class never drawn.
        recall: `(L + 1,)`; NaN for a class in no mask.
        ignored: share of the scored pixels whose label is 255, in `[0, 1]`; NaN where no pixel was scored.
        images: how many were scored.
    """

    miou: float
    iou: Tensor
    precision: Tensor
    recall: Tensor
    ignored: float
    images: int

    def as_dict(self, *, split: str, class_names: Sequence[str], tags: str | None = None) -> dict[str, Any]:
        """The content of `validate.json`, in the form of `EvaluationResult.as_dict`, and `ignored`.

        Args:
            split: name of the split.
            class_names: names of the `L` classes, without the background.
            tags: whose tags the labels were made with, "image" or "predicted"; `None`: with none.
        """
        content = score_content(self, split=split, images=self.images, tags=tags, class_names=class_names)
        return {**content, "ignored": number(self.ignored)}


class LabelIoU(Metric):
    """mIoU of label images from one confusion matrix over the whole split, as in PASCAL VOC; exact over ranks.

    Pixels that are 255 in the mask do not count. Pixels that are 255 in the labels only are "not drawn": they lower
    recall and IoU of their true class, but no precision.

    Args:
        num_classes: foreground classes `L`.
        over_ranks: whether `compute` gathers the counts of all ranks, each of which must call it then.

    Example:
        >>> metric = LabelIoU(num_classes=1)
        >>> metric.update(torch.tensor([[1, 0, 255, 1]]), torch.tensor([[1, 0, 1, 255]]))
        >>> scores = metric.compute()
        >>> scores.iou.tolist(), scores.recall.tolist(), scores.miou
        ([1.0, 0.5], [1.0, 0.5], 0.75)
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor
    images: Tensor

    def __init__(self, num_classes: int, *, over_ranks: bool = True) -> None:
        super().__init__(sync_on_compute=over_ranks)
        if num_classes < 1:
            raise ArgumentError("num_classes", num_classes, "give the number of foreground classes")
        self.num_classes = num_classes
        # One more column than rows: what is not drawn.
        self.add_state("counts", torch.zeros(num_classes + 1, num_classes + 2, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, labels: Tensor, mask: Tensor) -> None:
        """Count one image.

        Args:
            labels: `(H, W)` integer: 0 background, 1..L, 255 not drawn.
            mask: `(H, W)` integer: 0 background, 1..L, 255 void.

        Raises:
            ArgumentError: if the sizes differ, or one of them holds another value.
        """
        if labels.shape != mask.shape or mask.ndim != 2:
            raise ArgumentError("labels", tuple(labels.shape), f"give (H, W) as of this mask: {tuple(mask.shape)}")
        self._check_values("labels", labels)
        self._check_values("mask", mask)
        scored = mask != IGNORE_INDEX
        drawn = labels[scored].long()
        drawn = torch.where(drawn == IGNORE_INDEX, self.num_classes + 1, drawn)
        cell = mask[scored].long() * self.counts.shape[1] + drawn
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).reshape(self.counts.shape)
        self.images += 1

    def confusion(self) -> Tensor:
        """Confusion matrix `(L + 1, L + 2)`: true class, drawn class; the last column is not drawn."""
        return self.counts

    def compute(self) -> LabelScores:
        """Scores of all images so far."""
        matrix = self.counts.double()
        true, drawn = matrix.sum(dim=1), matrix[:, :-1].sum(dim=0)
        hit = matrix.diagonal()
        iou = hit / (true + drawn - hit)  # 0 / 0 is NaN: the class does not take part
        return LabelScores(
            miou=float(iou.nanmean()),
            iou=iou.cpu(),
            precision=(hit / drawn).cpu(),
            recall=(hit / true).cpu(),
            ignored=float(matrix[:, -1].sum() / matrix.sum()),
            images=int(self.images),
        )

    def _check_values(self, name: str, values: Tensor) -> None:
        wrong = values[((values < 0) | (values > self.num_classes)) & (values != IGNORE_INDEX)]
        if values.is_floating_point() or wrong.numel():
            found = str(values.dtype) if values.is_floating_point() else sorted(set(wrong.tolist()))
            raise ArgumentError(name, found, f"give integers 0..{self.num_classes} or {IGNORE_INDEX}")


class LabelEvaluation(nn.Module):
    """Collects the score of a split image by image, exact over all ranks.

    Args:
        num_classes: foreground classes `L`.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.label_iou = LabelIoU(num_classes)
        self.last_result: LabelScores | None = None

    def update(self, labels: Sequence[Tensor], masks: Tensor | None) -> None:
        """Add a batch; one without masks is passed over.

        Args:
            labels: `(H, W)` of each image.
            masks: `(B, H, W)`, or `None`.
        """
        if masks is not None:
            for image, mask in zip(labels, masks, strict=True):
                self.label_iou.update(image, mask)

    def finish(self) -> LabelScores | None:
        """Scores over all ranks, then start anew; `None` when no image had a mask on any rank."""
        (images,) = gather_uneven(self.label_iou.images[None])
        self.last_result = self.label_iou.compute() if int(images.sum()) else None
        self.reset()
        return self.last_result

    def reset(self) -> None:
        """Forget what was added; the last result stays."""
        self.label_iou.reset()
