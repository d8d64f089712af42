"""IoU of label images over a whole split: pseudo labels, or the masks of a segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.distributed import gather_uneven
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.mask_classes import MaskClasses
from rca_lightning.evaluation.report import Scores, class_scores


class LabelIoU(Metric):
    """mIoU of label images from one confusion matrix over the whole split, as in PASCAL VOC; exact over ranks.

    Pixels that are 255 in the target do not count. Pixels that are 255 only in the predictions are "not drawn": they
    lower recall and IoU of their true class, but no precision.

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

    @check_arguments
    def __init__(self, num_classes: int, *, over_ranks: bool = True) -> None:
        super().__init__(sync_on_compute=over_ranks)
        if num_classes < 1:
            raise ArgumentError("num_classes", num_classes, "give the number of foreground classes")
        self.num_classes = num_classes
        # One more column than rows: what is not drawn.
        self.add_state("counts", torch.zeros(num_classes + 1, num_classes + 2, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        """Counts one image.

        Args:
            preds: `(H, W)` integer: 0 background, 1..L, 255 not drawn.
            target: `(H, W)` integer: 0 background, 1..L, 255 void.

        Raises:
            ArgumentError: if the sizes differ, or one of them holds another value.
        """
        if preds.shape != target.shape or target.ndim != 2:
            raise ArgumentError("preds", tuple(preds.shape), f"give (H, W) as of this target: {tuple(target.shape)}")
        self._check_values("preds", preds)
        self._check_values("target", target)
        scored = target != IGNORE_INDEX
        drawn = preds[scored].long()
        drawn = torch.where(drawn == IGNORE_INDEX, self.num_classes + 1, drawn)
        cell = target[scored].long() * self.counts.shape[1] + drawn
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).reshape(self.counts.shape)
        self.images += 1

    def confusion(self) -> Tensor:
        """Confusion matrix `(L + 1, L + 2)`: true class, drawn class; the last column is not drawn."""
        return self.counts

    def compute(self) -> Scores:
        """Scores of all images so far."""
        iou, precision, recall = class_scores(self.counts)
        return Scores(
            images=int(self.images),
            miou=float(iou.nanmean()),
            iou=iou.cpu(),
            precision=precision.cpu(),
            recall=recall.cpu(),
            ignored=float(self.counts[:, -1].sum().double() / self.counts.sum()),
        )

    def _check_values(self, name: str, values: Tensor) -> None:
        wrong = values[((values < 0) | (values > self.num_classes)) & (values != IGNORE_INDEX)]
        if values.is_floating_point() or wrong.numel():
            given = str(values.dtype) if values.is_floating_point() else sorted(set(wrong.tolist()))
            raise ArgumentError(name, given, f"give integers 0..{self.num_classes} or {IGNORE_INDEX}")


class LabelEvaluation(nn.Module):
    """Scores the label images of a split batch by batch, exact over all ranks."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.label_iou = LabelIoU(num_classes)
        self.mask_classes = MaskClasses(num_classes)
        self.last_result: Scores | None = None

    def update(self, preds: Sequence[Tensor], target: Tensor, tags: Tensor) -> None:
        """Adds a batch: a label image `(H, W)` for each mask of the target `(B, H, W)`, and tags `(B, L)`."""
        for labels, mask, present in zip(preds, target, tags, strict=True):
            self.label_iou.update(labels, mask)
            self.mask_classes.update(mask, present)

    def finish(self) -> Scores | None:
        """Scores over all ranks, then a reset; `None` when no image was added on any rank."""
        (images,) = gather_uneven(self.label_iou.images[None])
        self.last_result = None
        if int(images.sum()):
            self.last_result = replace(self.label_iou.compute(), mask_classes=self.mask_classes.compute())
        self.reset()
        return self.last_result

    def reset(self) -> None:
        """Forgets the images that were added; the last result stays."""
        self.label_iou.reset()
        self.mask_classes.reset()
