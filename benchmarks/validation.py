"""Target 6: what scoring a split at twenty background thresholds costs over scoring it at one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from measure.result import Result
from measure.timing import Times, as_rows, in_turns, ratio
from torch import Tensor
from training_step import Size as Network
from training_step import make_module

from rca_lightning.data.sample import Batch
from rca_lightning.evaluation.counting import ImageCounter
from rca_lightning.evaluation.seed_iou import SeedIoU

_LIMIT = 1.3
_REPORTED = 0.3
_THRESHOLDS = {"one threshold": [_REPORTED], "twenty thresholds": [step / 20 for step in range(20)]}


@dataclass(frozen=True)
class Photographs:
    """Those of one pass."""

    images: int = 8
    height: int = 375
    width: int = 500


def run(*, quick: bool = False, rounds: int = 5) -> Result:
    """Whole validation steps, one scale and flip, and the metric alone on their maps."""
    network = Network(classes=20, backbone="resnet14" if quick else "resnet50", limit=_LIMIT)
    size = Photographs(images=2, height=48, width=64) if quick else Photographs()
    batch = _photographs(size, network.classes)
    validate = in_turns(
        {name: _validation(network, batch, chosen) for name, chosen in _THRESHOLDS.items()}, rounds=rounds
    )
    score = in_turns({name: _score(network, batch, chosen) for name, chosen in _THRESHOLDS.items()}, rounds=rounds)
    rows = [
        {"what": what, **row}
        for what, times in (("validation step", validate), ("metric alone", score))
        for row in as_rows(times, "one threshold")
    ]
    result = Result("validation", f"{size.images} photographs of {size.width} x {size.height}, two classes each", rows)
    result.at_most("validation at twenty thresholds over one", _twenty(validate), float("inf") if quick else _LIMIT)
    result.notes["metric alone at twenty thresholds over one"] = _twenty(score)
    return result


def _twenty(times: dict[str, Times]) -> float:
    return ratio(times["twenty thresholds"], times["one threshold"])


def _photographs(size: Photographs, classes: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    shape = (size.images, size.height, size.width)
    tags = torch.zeros(size.images, classes)
    tags[:, :2] = 1
    return Batch(
        image=torch.randn(size.images, 3, size.height, size.width, generator=generator).to(device),
        tags=tags.to(device),
        image_id=[f"image_{row}" for row in range(size.images)],
        original_size=torch.tensor([shape[1:]] * size.images).to(device),
        mask=torch.randint(0, 3, shape, generator=generator).to(device),
    )


def _validation(network: Network, batch: Batch, thresholds: list[float]) -> Callable[[], None]:
    module = make_module(network, rca=True)[0].eval()
    module.evaluation.counter = ImageCounter(network.classes, thresholds)
    module.hparams["seed_threshold"] = _REPORTED

    @torch.inference_mode()
    def validate() -> None:
        module.validation_step(batch, 0)
        module.evaluation.finish()

    return validate


def _score(network: Network, batch: Batch, thresholds: list[float]) -> Callable[[], float]:
    maps: Tensor = torch.rand(len(batch["image"]), 2, *batch["image"].shape[2:]).to(batch["image"].device)
    classes = torch.tensor([0, 1], device=maps.device)

    def score() -> float:
        metric = SeedIoU(network.classes, thresholds).to(maps.device)
        for own, mask in zip(maps, batch["mask"], strict=True):
            metric.update(own, mask, classes)
        return metric.compute().miou

    return score
