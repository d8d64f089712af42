"""Target 5: maps of photographs with four scales and flip, in batches, against one image and one view at a time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from measure.result import Result
from measure.timing import as_rows, in_turns, ratio
from torch import Tensor
from training_step import Size as Network
from training_step import make_module

from rca_lightning import RCAModule
from rca_lightning.rca.cam import max_normalise
from rca_lightning.rca.inference import infer_class_maps

_LIMIT = 2.0
_APART = 1e-3


@dataclass(frozen=True)
class Photographs:
    """Photographs, network and views."""

    images: int = 4
    height: int = 375
    width: int = 500
    classes: int = 20
    backbone: str = "resnet50"
    scales: tuple[float, ...] = (0.5, 0.75, 1.0, 1.25)


def run(*, quick: bool = False, rounds: int = 3) -> Result:
    """Both ways in turns, and how far their maps are apart."""
    size = Photographs(images=2, height=48, width=64, classes=3, backbone="resnet14") if quick else Photographs()
    module, images, tags = _setup(size)
    found: dict[str, list[Tensor]] = {}
    ways = {
        "batch": lambda: found.update(batch=_in_batches(module, images, tags, size)),
        "one by one": lambda: found.update(single=_one_by_one(module, images, tags, size)),
    }
    with torch.inference_mode():
        times = in_turns(ways, rounds=rounds)
    views = f"{len(size.scales)} scales and flip"
    rows = [{**row, "images_per_second": size.images / float(row["seconds"])} for row in as_rows(times, "batch")]
    result = Result("prediction", f"{size.images} photographs of {size.width} x {size.height}, {views}", rows)
    result.at_least(
        "images a second over one by one", ratio(times["one by one"], times["batch"]), 0 if quick else _LIMIT
    )
    apart = max(float((a - b).abs().max()) for a, b in zip(found["batch"], found["single"], strict=True))
    result.at_most("largest difference of the maps", apart, _APART)
    return result


def _setup(size: Photographs) -> tuple[RCAModule, Tensor, Tensor]:
    module, _ = make_module(Network(classes=size.classes, backbone=size.backbone, limit=_LIMIT, slots=20), rca=True)
    tags = torch.zeros(size.images, size.classes, device=module.device)
    tags[:, :2] = 1
    return module.eval(), torch.randn(size.images, 3, size.height, size.width, device=module.device), tags


def _in_batches(module: RCAModule, images: Tensor, tags: Tensor, size: Photographs) -> list[Tensor]:
    seeds = infer_class_maps(module.network, images, tags, final_map="attention", scales=size.scales, flip=True)
    return [one.maps for one in seeds]


def _one_by_one(module: RCAModule, images: Tensor, tags: Tensor, size: Photographs) -> list[Tensor]:
    maps = []
    for image, own in zip(images, tags, strict=True):
        total: Tensor | None = None
        for scale in sorted(size.scales, reverse=True):
            shape = (round(size.height * scale), round(size.width * scale))
            view = F.interpolate(image[None], shape, mode="bilinear", antialias=scale < 1)
            for mirrored in (False, True):
                seen = module.network(view.flip(3) if mirrored else view, own[None]).final_cam("attention")
                seen = seen.flip(3) if mirrored else seen
                if total is None:
                    total = torch.zeros_like(seen)
                total = total + F.interpolate(seen, total.shape[2:], mode="bilinear", align_corners=False)
        assert total is not None
        mean = total[:, own > 0] / (2 * len(size.scales))
        enlarged = F.interpolate(mean, (size.height, size.width), mode="bilinear", align_corners=False)
        maps.append(max_normalise(enlarged)[0])
    return maps
