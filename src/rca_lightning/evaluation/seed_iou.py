"""IoU of seeds over a whole split, for every background threshold in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.functional.classification import binary_average_precision, binary_calibration_error

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.distributed import gather_uneven
from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.auto_threshold import Automatic, AutoThreshold
from rca_lightning.evaluation.counting import ImageCounter
from rca_lightning.evaluation.map_kinds import MapKind
from rca_lightning.evaluation.mask_classes import MaskClasses
from rca_lightning.evaluation.protocol import ThresholdSource
from rca_lightning.evaluation.report import Scores, class_scores
from rca_lightning.rca.cam import predicted_classes
from rca_lightning.rca.inference import ClassMaps

TagSource = Literal["image", "predicted"]
DEFAULT_THRESHOLDS: tuple[float, ...] = tuple(round(0.05 * step, 2) for step in range(1, 20))
_FINE_THRESHOLDS = tuple(round(0.01 * step, 2) for step in range(1, 100))


class SeedIoU(Metric):
    """mIoU of seeds from one confusion matrix over the whole split and for each background threshold.

    Pixels are counted by true class, strongest class and the interval between thresholds that its strength falls in.
    The confusion matrix of every threshold is a partial sum of that table, so a curve costs no more than a single
    threshold. Void pixels (255) do not count.

    Args:
        num_classes: foreground classes `L`.
        thresholds: background thresholds in `[0, 1]`, ascending.
        fixed_threshold: report this one, so that nothing is tuned on the masks; `None`: the best of `thresholds`.

    Example:
        >>> metric = SeedIoU(num_classes=1, thresholds=[0.5])
        >>> metric.update(torch.tensor([[[0.9, 0.1]]]), torch.tensor([[1, 0]]))
        >>> metric.compute().miou
        1.0
    """

    full_state_update = False
    higher_is_better = True
    counts: Tensor
    images: Tensor

    @check_arguments
    def __init__(
        self,
        num_classes: int,
        thresholds: Sequence[float] = DEFAULT_THRESHOLDS,
        fixed_threshold: float | None = None,
    ) -> None:
        super().__init__()
        if fixed_threshold is not None:
            thresholds = sorted({*thresholds, fixed_threshold})
        ascending = thresholds and list(thresholds) == sorted(set(thresholds))
        if not ascending or not 0 <= thresholds[0] <= thresholds[-1] <= 1:
            raise ArgumentError("thresholds", list(thresholds), "give ascending numbers in [0, 1]")
        self.num_classes = num_classes
        self.thresholds = [float(value) for value in thresholds]
        self.fixed_threshold = fixed_threshold
        shape = (num_classes + 1, num_classes, len(self.thresholds) + 1)
        self.add_state("counts", torch.zeros(shape, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("images", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor, classes: Tensor | None = None) -> None:
        """Counts one image.

        Args:
            preds: class maps `(K, H, W)` in `[0, 1]`. Without a map (`K = 0`) all of the image is background.
            target: mask `(H, W)` integer: 0 background, 1..L, 255 void.
            classes: `(K,)` class index in `[0, L)` of each map; `None`: `K = L`, all classes in order.

        Raises:
            ArgumentError: if the sizes differ, or the target or `classes` hold another value.
        """
        truth, strongest, interval = strongest_classes(
            preds, target, classes, num_classes=self.num_classes, thresholds=self.thresholds
        )
        _, num_classes, intervals = self.counts.shape
        cell = (truth * num_classes + strongest) * intervals + interval
        self.counts += torch.bincount(cell, minlength=self.counts.numel()).reshape(self.counts.shape)
        self.images += 1

    def confusion(self) -> Tensor:
        """Confusion matrices `(T, L + 1, L + 1)`: threshold, true class, drawn class."""
        return _confusions(self.counts)

    def compute(self) -> Scores:
        """Scores of all images so far, at the fixed threshold or at the one with the best mIoU."""
        return table_scores(self.counts, self.thresholds, self.fixed_threshold, images=int(self.images))


def strongest_classes(
    preds: Tensor, target: Tensor, classes: Tensor | None, *, num_classes: int, thresholds: Sequence[float]
) -> tuple[Tensor, Tensor, Tensor]:
    """Reads the scored pixels of an image; for the arguments see `SeedIoU.update`.

    Returns:
        Of each of the `P` pixels that are not void, `(P,)` int64: true class, strongest class in `[0, L)`, and how many
        thresholds lie below its strength.
    """
    if classes is None:
        classes = torch.arange(num_classes, device=preds.device)
    if preds.shape != (len(classes), *target.shape):
        raise ArgumentError("preds", tuple(preds.shape), f"give {(len(classes), *target.shape)} for this target")
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise ArgumentError("classes", classes.tolist(), f"give class indices in [0, {num_classes})")
    scored = target != IGNORE_INDEX
    truth = target[scored].long()
    if truth.numel() and not 0 <= int(truth.min()) <= int(truth.max()) <= num_classes:
        raise ArgumentError("target", sorted(set(truth.tolist())), f"give 0..{num_classes} or {IGNORE_INDEX}")
    if len(classes) == 0:
        preds, classes = preds.new_zeros(1, *target.shape), classes.new_zeros(1)
    strength, winner = preds.float().max(dim=0)  # before the void is left out: one map is gathered, not all of them
    interval = torch.bucketize(strength[scored], torch.tensor(thresholds, device=strength.device))
    return truth, classes[winner[scored]], interval


def _confusions(counts: Tensor) -> Tensor:
    """Confusion matrices `(T, L + 1, L + 1)` from pixels `(L + 1, L, T + 1)`."""
    # At threshold t a pixel is drawn when more than t thresholds lie below its strength.
    below = counts.cumsum(dim=2)[:, :, :-1]  # (L + 1, L, T)
    drawn = counts.sum(dim=2, keepdim=True) - below
    background = below.sum(dim=1, keepdim=True)
    return torch.cat([background, drawn], dim=1).permute(2, 0, 1)


def table_scores(counts: Tensor, thresholds: Sequence[float], threshold: float | None, *, images: int) -> Scores:
    """Scores of seeds from their pixels by true class, strongest class and interval.

    Args:
        counts: `(L + 1, L, T + 1)`.
        thresholds: `T` of them, ascending.
        threshold: the one to report; `None`: the best.
        images: how many were counted.
    """
    iou, precision, recall = class_scores(_confusions(counts))  # (T, L + 1) each
    curve = iou.nanmean(dim=1)
    best = int(curve.nan_to_num(-1).argmax())
    index = best if threshold is None else list(thresholds).index(float(threshold))
    return Scores(
        images=images,
        miou=float(curve[index]),
        iou=iou[index].cpu(),
        precision=precision[index].cpu(),
        recall=recall[index].cpu(),
        threshold=thresholds[index],
        oracle_threshold=thresholds[best],
        oracle_miou=float(curve[best]),
        curve=dict(zip(thresholds, curve.tolist(), strict=True)),
    )


class Evaluation(nn.Module):
    """Scores the seeds and the image probabilities of a split batch by batch, exact over all ranks.

    Args:
        num_classes: foreground classes `L`.
        thresholds: further background thresholds to count, beside `DEFAULT_THRESHOLDS`.
        chooses: whether `finish` can choose the threshold without masks; then 0.01, 0.02, ... 0.99 are counted.
    """

    none: Tensor

    @check_arguments
    def __init__(self, num_classes: int, thresholds: Sequence[float] = (), *, chooses: bool = False) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.auto = AutoThreshold() if chooses else None
        counted = _FINE_THRESHOLDS if chooses else DEFAULT_THRESHOLDS
        self.counter = ImageCounter(num_classes, sorted({*counted, *map(float, thresholds)}))
        self.mask_classes = MaskClasses(num_classes)
        self.register_buffer("none", torch.zeros(0, num_classes), persistent=False)
        self.probabilities: list[Tensor] = []
        self.tags: list[Tensor] = []
        self.last_result: Scores | None = None

    def update(
        self, seeds: list[ClassMaps], tags: Tensor, masks: Tensor | None, ids: Sequence[str] | None = None
    ) -> None:
        """Adds a batch; one without masks is passed over.

        Args:
            seeds: of each image.
            tags: true tags `(B, L)`; images whose row is below 0 (unknown) do not count in the scores of tags.
            masks: `(B, H, W)`, or `None`.
            ids: names of the images, by which one that comes twice is known; `None`: all are different ones.
        """
        if masks is None:
            return
        names: Sequence[str | None] = [None] * len(masks) if ids is None else ids
        known = {"num_classes": self.num_classes, "thresholds": self.counter.thresholds}
        for image, mask, name in zip(seeds, masks, names, strict=True):
            true, strongest, interval = strongest_classes(image.maps, mask, image.classes, **known)  # type: ignore[arg-type]
            self.counter.add(name, mask, true, strongest + 1, interval)
            if self.auto is not None:
                self.auto.update(image.maps)
        for mask, present in zip(masks, tags, strict=True):
            self.mask_classes.update(mask, present)
        self.probabilities.extend(image.probabilities for image in seeds)
        self.tags.extend(tags.to(torch.int8))

    @check_arguments
    def finish(
        self,
        tag_threshold: float | Tensor = 0.5,
        *,
        threshold: float | Automatic | None = None,
        threshold_source: ThresholdSource | None = None,
        kind: MapKind | None = None,
    ) -> Scores | None:
        """Scores over all ranks, then a reset; `None` when no image had a mask on any rank.

        Args:
            tag_threshold: of the probabilities above which tags are predicted, also `(L,)`, one a class.
            threshold: background threshold to report, one of those that are counted; "auto": see `AutoThreshold`, to
                hundredths; `None`: the best on these masks.
            threshold_source: how it was chosen.
            kind: of the maps, for "auto".

        Raises:
            ArgumentError: for a threshold that is not counted.
        """
        if threshold == "auto":
            if self.auto is None:
                raise ArgumentError("threshold", threshold, "give it as seed_threshold when the module is made")
            self.auto.kind = kind
            chosen = self.auto.compute()  # on every rank
            threshold = 0.5 if chosen is None else min(0.99, max(0.01, round(chosen, 2)))
        if threshold is not None and threshold not in self.counter.thresholds:
            remedy = "it was not counted; give it as seed_threshold when the module is made"
            raise ArgumentError("threshold", threshold, remedy)
        probabilities = torch.stack(self.probabilities) if self.probabilities else self.none
        tags = torch.stack(self.tags) if self.tags else self.none.to(torch.int8)
        probabilities, tags = gather_uneven(probabilities, tags)
        counts = self.counter.gather(self.none.device)
        self.last_result = None
        if counts is not None:
            known = (tags >= 0).all(dim=1)
            probabilities, tags = probabilities[known], tags[known].long()
            micro, macro = tag_f1_scores(predicted_classes(probabilities, tag_threshold), tags)
            self.last_result = replace(
                table_scores(torch.from_numpy(counts.table()), counts.thresholds, threshold, images=len(counts.ids)),
                threshold_source="masks" if threshold is None else threshold_source,
                classification_map=mean_average_precision(probabilities, tags),
                tag_f1=micro,
                tag_f1_macro=macro,
                tag_calibration_error=tag_calibration_error(probabilities, tags),
                mask_classes=self.mask_classes.compute(),
                image_counts=counts,
            )
        self.reset()
        return self.last_result

    def reset(self) -> None:
        """Forgets the images that were added; the last result stays."""
        self.counter.reset()
        if self.auto is not None:
            self.auto.reset()
        self.mask_classes.reset()
        self.probabilities.clear()
        self.tags.clear()


def mean_average_precision(probabilities: Tensor, tags: Tensor) -> float:
    """Mean average precision over the classes that occur; NaN if none does.

    Args:
        probabilities: `(I, L)`.
        tags: `(I, L)` int64, 0 or 1.
    """
    occurs = (tags > 0).any(dim=0)
    per_class = [binary_average_precision(probabilities[:, c], tags[:, c]) for c in torch.nonzero(occurs)[:, 0]]
    return float(torch.stack(per_class).mean()) if per_class else float("nan")


def tag_f1_scores(predicted: Tensor, tags: Tensor) -> tuple[float, float]:
    """F1 of predicted tags: over all pairs of image and class, and the mean over the classes that occur.

    Args:
        predicted: `(I, L)` bool.
        tags: `(I, L)` int64, 0 or 1.

    Returns:
        Both in `[0, 1]`; NaN if no class occurs.

    Example:
        >>> tag_f1_scores(torch.tensor([[True, False], [True, False]]), torch.tensor([[1, 0], [0, 1]]))
        (0.5, 0.3333333432674408)
    """
    true = tags > 0
    hits, total = (predicted & true).sum(dim=0), predicted.sum(dim=0) + true.sum(dim=0)  # (L,) each
    occurs = true.any(dim=0)
    if not bool(occurs.any()):
        return float("nan"), float("nan")
    return float(2 * hits.sum() / total.sum()), float((2 * hits[occurs] / total[occurs]).mean())


def tag_calibration_error(probabilities: Tensor, tags: Tensor) -> float:
    """Expected calibration error of image probabilities, over all pairs of image and class; NaN without images.

    Pairs are grouped by probability into 15 bins of like width. The error is the mean over pairs of the difference
    between the mean probability of a bin and the share of tags in it (Guo et al., ICML 2017).

    Args:
        probabilities: `(I, L)`.
        tags: `(I, L)` int64, 0 or 1.
    """
    if not tags.numel():
        return float("nan")
    return float(binary_calibration_error(probabilities.flatten(), tags.flatten(), n_bins=15, norm="l1"))
