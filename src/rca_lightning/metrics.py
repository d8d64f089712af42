"""The score of seeds over a whole split, for every background threshold in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchmetrics import Metric

from rca_lightning.errors import ArgumentError

IGNORE_INDEX = 255
DEFAULT_THRESHOLDS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))


@dataclass
class SeedScores:
    """Scores of one split; class 0 is the background.

    Attributes:
        miou: mean IoU at `threshold`, over classes that occur in the masks or the seeds.
        threshold: the fixed threshold, or the one with the best mIoU.
        curve: mIoU by threshold.
        iou: `(L + 1,)`; NaN for a class in neither masks nor seeds.
        precision: `(L + 1,)`; NaN for a class never drawn.
        recall: `(L + 1,)`; NaN for a class in no mask.
    """

    miou: float
    threshold: float
    curve: dict[float, float]
    iou: Tensor
    precision: Tensor
    recall: Tensor


class SeedIoU(Metric):
    """mIoU of seeds from one confusion matrix over the whole split and for each background threshold.

    Pixels are counted by true class, strongest class and the interval of thresholds its strength falls in:
    the confusion matrix of every threshold is a partial sum of that one table, so
    a curve costs no more than a single threshold. Void pixels (255) do not count.

    Args:
        num_classes: foreground classes `L`.
        thresholds: background thresholds in `[0, 1]`, ascending.
        fixed_threshold: report this one, so that nothing is tuned on the masks; `None`: the best of
            `thresholds`.

    Example:
        >>> metric = SeedIoU(num_classes=1, thresholds=[0.5])
        >>> metric.update(torch.tensor([[[0.9, 0.1]]]), torch.tensor([[1, 0]]))
        >>> metric.compute().miou
        1.0
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor

    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        fixed_threshold: float | None = None,
    ) -> None:
        super().__init__()
        if fixed_threshold is not None:
            thresholds = sorted({*thresholds, fixed_threshold})
        if (
            not thresholds
            or list(thresholds) != sorted(set(thresholds))
            or not 0 <= thresholds[0] <= thresholds[-1] <= 1
        ):
            raise ArgumentError("thresholds", list(thresholds), "give ascending numbers in [0, 1]")
        self.num_classes = num_classes
        self.thresholds = [float(value) for value in thresholds]
        self.fixed_threshold = fixed_threshold
        shape = (num_classes + 1, num_classes, len(self.thresholds) + 1)
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, maps: Tensor, mask: Tensor, classes: Tensor | None = None) -> None:
        """Count one image.

        Args:
            maps: `(K, H, W)` in `[0, 1]`. Without a map (`K = 0`) all of the image is background.
            mask: `(H, W)` integer: 0 background, 1..L, 255 void.
            classes: `(K,)` class index in `[0, L)` of each map; `None`: `K = L`, all classes in order.

        Raises:
            ArgumentError: if the sizes differ, or the mask or `classes` hold another value.
        """
        if classes is None:
            classes = torch.arange(self.num_classes, device=maps.device)
        if maps.shape != (len(classes), *mask.shape):
            raise ArgumentError("maps", tuple(maps.shape), f"give {(len(classes), *mask.shape)} for this mask")
        if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < self.num_classes:
            raise ArgumentError("classes", classes.tolist(), f"give class indices in [0, {self.num_classes})")
        scored = mask != IGNORE_INDEX
        truth = mask[scored].long()
        if truth.numel() == 0:
            return
        if int(truth.min()) < 0 or int(truth.max()) > self.num_classes:
            raise ArgumentError("mask", sorted(set(truth.tolist())), f"give 0..{self.num_classes} or {IGNORE_INDEX}")
        if len(classes) == 0:
            maps, classes = maps.new_zeros(1, *mask.shape), classes.new_zeros(1)
        strength, winner = maps[:, scored].float().max(dim=0)
        label = classes[winner]
        edges = torch.tensor(self.thresholds, device=strength.device)
        interval = torch.bucketize(strength, edges)  # thresholds below the strength
        _, labels, intervals = self.counts.shape
        cell = (truth * labels + label) * intervals + interval
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).reshape(self.counts.shape)

    def confusion(self) -> Tensor:
        """Confusion matrices `(T, L + 1, L + 1)`: threshold, true class, drawn class."""
        # At threshold t a pixel is drawn when more than t thresholds lie below its strength.
        below = self.counts.cumsum(dim=2)[:, :, :-1]  # (L + 1, L, T)
        drawn = self.counts.sum(dim=2, keepdim=True) - below
        background = below.sum(dim=1, keepdim=True)
        return torch.cat([background, drawn], dim=1).permute(2, 0, 1)

    def compute(self) -> SeedScores:
        """Scores of all images so far."""
        matrix = self.confusion().double()
        hit = matrix.diagonal(dim1=1, dim2=2)  # (T, L + 1)
        true, drawn = matrix.sum(dim=2), matrix.sum(dim=1)
        iou = hit / (true + drawn - hit)  # 0 / 0 is NaN: the class does not take part
        curve = iou.nanmean(dim=1)
        if self.fixed_threshold is None:
            index = int(curve.nan_to_num(-1).argmax())
        else:
            index = self.thresholds.index(float(self.fixed_threshold))
        return SeedScores(
            miou=float(curve[index]),
            threshold=self.thresholds[index],
            curve=dict(zip(self.thresholds, curve.tolist(), strict=True)),
            iou=iou[index].cpu(),
            precision=(hit / drawn)[index].cpu(),
            recall=(hit / true)[index].cpu(),
        )
