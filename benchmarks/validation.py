"""Target 6: what scoring a split at twenty background thresholds costs over scoring it at one."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from measure.result import Result
from measure.timing import as_rows, in_turns, ratio
from torch import Tensor

from rca_lightning.metrics import SeedIoU

_LIMIT = 1.3


@dataclass(frozen=True)
class Size:
    """Maps of one pass."""

    images: int = 20
    height: int = 375
    width: int = 500
    classes: int = 20


def run(*, quick: bool = False, rounds: int = 5) -> Result:
    """The metric alone, without the network, whose share would hide it."""
    size = Size(images=2, height=20, width=30) if quick else Size()
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(size.images, 2, size.height, size.width, generator=generator)
    masks = torch.randint(0, 3, (size.images, size.height, size.width), generator=generator)
    thresholds = {1: [0.3], 20: [step / 20 for step in range(20)]}
    ways = {
        str(number): lambda chosen=chosen: _score(maps, masks, size, chosen) for number, chosen in thresholds.items()
    }
    times = in_turns(ways, rounds=rounds)
    rows = [{"thresholds": row.pop("way"), **row} for row in as_rows(times, "1")]
    result = Result("validation", f"{size.images} photographs of {size.width} x {size.height}, two classes each", rows)
    result.at_most("twenty thresholds over one", ratio(times["20"], times["1"]), float("inf") if quick else _LIMIT)
    return result


def _score(maps: Tensor, masks: Tensor, size: Size, thresholds: list[float]) -> float:
    metric = SeedIoU(size.classes, thresholds)
    classes = torch.tensor([0, 1])
    for own, mask in zip(maps, masks, strict=True):
        metric.update(own, mask, classes)
    return metric.compute().miou
