"""IoU of label images over a whole split: pseudo labels, or the masks of a segmentation network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.counting import ImageCounter
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
        true, drawn = drawn_labels(preds, target, num_classes=self.num_classes)
        cell = true * self.counts.shape[1] + drawn
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).reshape(self.counts.shape)
        self.images += 1

    def confusion(self) -> Tensor:
        """Confusion matrix `(L + 1, L + 2)`: true class, drawn class; the last column is not drawn."""
        return self.counts

    def compute(self) -> Scores:
        """Scores of all images so far."""
        return confusion_scores(self.counts, images=int(self.images))


def confusion_scores(counts: Tensor, *, images: int) -> Scores:
    """Scores of label images from a confusion matrix `(L + 1, L + 2)`."""
    iou, precision, recall = class_scores(counts)
    return Scores(
        images=images,
        miou=float(iou.nanmean()),
        iou=iou.cpu(),
        precision=precision.cpu(),
        recall=recall.cpu(),
        ignored=float(counts[:, -1].sum().double() / counts.sum()),
    )


def drawn_labels(preds: Tensor, target: Tensor, *, num_classes: int) -> tuple[Tensor, Tensor]:
    """Reads the scored pixels of an image; for the arguments see `LabelIoU.update`.

    Returns:
        Of each of the `P` pixels that are not void, `(P,)` int64: true class, and label or `L + 1` for not drawn.
    """
    if preds.shape != target.shape or target.ndim != 2:
        raise ArgumentError("preds", tuple(preds.shape), f"give (H, W) as of this target: {tuple(target.shape)}")
    for name, values in (("preds", preds), ("target", target)):
        wrong = values[((values < 0) | (values > num_classes)) & (values != IGNORE_INDEX)]
        if values.is_floating_point() or wrong.numel():
            given = str(values.dtype) if values.is_floating_point() else sorted(set(wrong.tolist()))
            raise ArgumentError(name, given, f"give integers 0..{num_classes} or {IGNORE_INDEX}")
    scored = target != IGNORE_INDEX
    drawn = preds[scored].long()
    return target[scored].long(), torch.where(drawn == IGNORE_INDEX, num_classes + 1, drawn)


class LabelEvaluation(nn.Module):
    """Scores the label images of a split batch by batch, exact over all ranks.

    Args:
        num_classes: foreground classes `L`.
        over_ranks: whether `finish` gathers the counts of all ranks, each of which must call it then.
    """

    none: Tensor

    def __init__(self, num_classes: int, *, over_ranks: bool = True) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.over_ranks = over_ranks
        self.counter = ImageCounter(num_classes)
        self.mask_classes = MaskClasses(num_classes, over_ranks=over_ranks)
        self.register_buffer("none", torch.zeros(0), persistent=False)
        self.last_result: Scores | None = None

    def update(self, preds: Sequence[Tensor], target: Tensor, tags: Tensor, ids: Sequence[str] | None = None) -> None:
        """Adds a batch.

        Args:
            preds: label image `(H, W)` of each mask.
            target: masks `(B, H, W)`.
            tags: `(B, L)`.
            ids: names of the images, by which one that comes twice is known; `None`: all are different ones.
        """
        names: Sequence[str | None] = [None] * len(target) if ids is None else ids
        for labels, mask, present, name in zip(preds, target, tags, names, strict=True):
            self.counter.add(name, mask, *drawn_labels(labels, mask, num_classes=self.num_classes))
            self.mask_classes.update(mask, present)

    def finish(self) -> Scores | None:
        """Scores over all ranks, then a reset; `None` when no image was added on any rank."""
        counts = self.counter.gather(self.none.device, over_ranks=self.over_ranks)
        self.last_result = None
        if counts is not None:
            scores = confusion_scores(torch.from_numpy(counts.table()), images=len(counts.ids))
            self.last_result = replace(scores, mask_classes=self.mask_classes.compute(), image_counts=counts)
        self.reset()
        return self.last_result

    def reset(self) -> None:
        """Forgets the images that were added; the last result stays."""
        self.counter.reset()
        self.mask_classes.reset()
