"""Scores of guesses that look at no image, beside which the score of a network on the same masks can be judged."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import load_mask
from rca_lightning.data.records import Record, Source
from rca_lightning.data.sources import evaluation_records
from rca_lightning.errors import ArgumentError, DataError, RCAError
from rca_lightning.evaluation.report import Scores
from rca_lightning.evaluation.seed_iou import SeedIoU

logger = logging.getLogger(__name__)

TaggedMask = tuple[Sequence[int], Tensor]
"""Class indices of an image's tags, and its mask `(H, W)`: 0 background, 1..L, 255 void."""

GRID = 64
"""Rows and columns of the mean masks."""

_THRESHOLDS = tuple(round(0.02 * step, 2) for step in range(50))

_Guess = Callable[[Sequence[int], tuple[int, int]], tuple[Tensor, Tensor]]
"""From the tags and the size of an image to class maps `(K, H, W)` and the class index of each."""


def baseline_scores(
    chosen_on: Sequence[TaggedMask], scored_on: Iterable[TaggedMask], *, num_classes: int
) -> dict[str, dict[str, Any]]:
    """Scores two guesses that know the true tags of an image, and nothing of its pixels.

    - `disc`: a disc in the middle of each image carries one of its tags, the first or the last.
    - `tag_prior`: each tag is drawn where the mean mask of its class exceeds a threshold; the highest wins.

    Radius, tag and threshold are those with the best mIoU on the images that they are chosen on.

    Args:
        chosen_on: tags and masks of training images.
        scored_on: tags and masks of the images to score.
        num_classes: foreground classes `L`.

    Returns:
        Of `disc` a dict with `miou` in `[0, 1]`, `radius` in units of half the image's diagonal, and `tag`, which is
        "first" or "last"; of `tag_prior` one with `miou` and `threshold` in `[0, 1)`.

    Raises:
        ArgumentError: if there is nothing to choose or to score on, or a mask or tag holds another class.

    Example:
        >>> ball = (torch.cdist(torch.arange(9.0)[:, None, None], torch.tensor([[4.0]])) < 3).long()[..., 0]
        >>> image = ([0], ball @ ball.T)
        >>> baseline_scores([image], [image], num_classes=1)["tag_prior"]["miou"] > 0.9
        True
    """
    scored_on = list(scored_on)
    if not chosen_on or not scored_on:
        raise ArgumentError("chosen_on" if scored_on else "scored_on", [], "give one image or more")
    prior = mean_masks(chosen_on, num_classes=num_classes)

    def tag_prior(tags: Sequence[int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        classes = torch.tensor(list(tags), dtype=torch.long)
        maps = F.interpolate(prior[None, classes], size, mode="bilinear") if len(classes) else prior[None, :0]
        return maps[0].reshape(len(classes), *size), classes

    discs = {"first": _disc(slice(0, 1)), "last": _disc(slice(-1, None))}
    best = {name: _score(draw, chosen_on, num_classes) for name, draw in discs.items()}
    tag = max(best, key=lambda name: best[name].miou)
    disc = _score(discs[tag], scored_on, num_classes, threshold=best[tag].threshold)
    threshold = _score(tag_prior, chosen_on, num_classes).threshold
    placed = _score(tag_prior, scored_on, num_classes, threshold=threshold)
    assert disc.threshold is not None
    return {
        "disc": {"miou": disc.miou, "radius": round(1 - disc.threshold, 2), "tag": tag},
        "tag_prior": {"miou": placed.miou, "threshold": threshold},
    }


def split_baselines(
    source: Source,
    split: str,
    *,
    chosen_on: str,
    num_classes: int,
    mask_dir: str | None = None,
    ids: Collection[str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Scores the guesses of `baseline_scores` on a split of a data set.

    Args:
        source: the data set.
        split: whose images are scored.
        chosen_on: the split whose masks they are chosen on, those of the data set.
        num_classes: foreground classes `L`.
        mask_dir: masks to score against instead of the data set's own.
        ids: names of the images of `split` to score; `None`: all.

    Raises:
        DataError: a mask is missing or cannot be read.
        DatasetNotFoundError: a folder or list is missing.
    """
    options: Any = {"saliency_dir": None, "need_masks": True, "need_tags": True}
    learned = evaluation_records(source, chosen_on, mask_dir=None, **options)
    scored = evaluation_records(source, split, mask_dir=mask_dir, **options)
    return baseline_scores(
        list(_tagged_masks(learned, num_classes)),
        _tagged_masks((one for one in scored if ids is None or one.image_id in ids), num_classes),
        num_classes=num_classes,
    )


def generated_baselines(data: WSSSDataModule, split: str, ids: Collection[str]) -> dict[str, dict[str, Any]] | None:
    """Scores the guesses of `baseline_scores` beside a score on generated images; they are chosen on train.

    Args:
        data: the data set.
        split: whose images are scored.
        ids: names of the images that are scored.

    Returns:
        The scores; `None` for photographs, or where a mask of train cannot be read, which is logged.
    """
    if data.options.dataset != "synthetic":
        return None
    try:
        return split_baselines(
            data.open_source(),
            split,
            chosen_on="train",
            num_classes=data.num_classes,
            mask_dir=data.mask_dir,
            ids=frozenset(ids),
        )
    except RCAError as error:  # the score of the network stands all the same
        logger.warning("guesses without a network have no score: %s", error)
        return None


def mean_masks(images: Iterable[TaggedMask], *, num_classes: int) -> Tensor:
    """The mean of the masks of each class over the images with its tag, `(L, GRID, GRID)`; 0 of a class without any."""
    sums, numbers = torch.zeros(num_classes, GRID, GRID), torch.zeros(num_classes)
    for tags, mask in images:
        for label in tags:
            sums[label] += F.adaptive_avg_pool2d((mask == label + 1).float()[None], GRID)[0]
            numbers[label] += 1
    return sums / numbers.clamp_min(1)[:, None, None]


def closeness_to_middle(size: tuple[int, int]) -> Tensor:
    """One minus the distance from the middle of an image, in units of half its diagonal, `(H, W)` in `(0, 1]`."""
    down, across = (torch.arange(length) - (length - 1) / 2 for length in size)
    return 1 - torch.hypot(down[:, None], across[None]) / (math.hypot(*size) / 2)


def _disc(chosen: slice) -> _Guess:
    """The closeness to the middle as map of the chosen tag: each threshold of it draws a disc."""

    def draw(tags: Sequence[int], size: tuple[int, int]) -> tuple[Tensor, Tensor]:
        classes = torch.tensor(list(tags)[chosen], dtype=torch.long)
        return closeness_to_middle(size).expand(len(classes), *size), classes

    return draw


def _score(draw: _Guess, images: Iterable[TaggedMask], num_classes: int, *, threshold: float | None = None) -> Scores:
    """Scores a guess at a threshold, `None`: at the best one."""
    metric = SeedIoU(num_classes, _THRESHOLDS, threshold)
    for tags, mask in images:
        maps, classes = draw(tags, (mask.shape[0], mask.shape[1]))
        metric.update(maps, mask, classes)
    return metric.compute()


def _tagged_masks(records: Iterable[Record], num_classes: int) -> Iterator[TaggedMask]:
    for record in records:
        mask = load_mask(record, num_classes=num_classes)
        if mask is None:
            raise DataError(f"{record.image}: has no mask; scores need one")
        yield record.tags or (), torch.from_numpy(mask)
