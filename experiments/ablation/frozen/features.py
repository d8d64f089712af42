"""Features of a trained network, kept in a file, so that what comes behind it can be varied in a minute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning import RCAModule
from rca_lightning.data.sample import Sample
from rca_lightning.errors import DataError
from rca_lightning.io.atomic import write_atomically

STAGES = 2
"""How many of the last stages are kept."""


@dataclass
class CachedSplit:
    """What a frozen network sees in the images of a split, one view each.

    Attributes:
        ids: of the `I` images.
        stages: of each image the last stages behind each other, `(D, h, w)` float16.
        widths: channels of each stage.
        tags: `(I, L)`, 0 or 1.
        masks: of each image `(H, W)` uint8, 255 void.
        class_names: the `L` classes.
        head: weights of the first CAM head.
        checkpoint: where they come from.
    """

    ids: list[str]
    stages: list[Tensor]
    widths: list[int]
    tags: Tensor
    masks: list[Tensor]
    class_names: list[str]
    head: dict[str, Tensor]
    checkpoint: str

    def save(self, path: Path) -> None:
        """Write it whole or not at all."""
        write_atomically(path, lambda file: torch.save(vars(self), file))

    @classmethod
    def load(cls, path: Path) -> CachedSplit:
        """Map a file that `save` wrote into memory.

        Raises:
            DataError: there is no such file, or it holds something else.
        """
        if not path.is_file():
            raise DataError(f"features {path}: are not there; make them with experiments/ablation/extract.py")
        try:
            return cls(**torch.load(path, map_location="cpu", weights_only=True, mmap=True))
        except (RuntimeError, TypeError, OSError) as error:
            raise DataError(f"features {path}: cannot be read ({error}); make them anew") from error

    def part(self, begin: int, step: int) -> CachedSplit:
        """Every `step`-th image from `begin` on."""
        chosen = slice(begin, None, step)
        return CachedSplit(
            self.ids[chosen],
            self.stages[chosen],
            self.widths,
            self.tags[chosen],
            self.masks[chosen],
            self.class_names,
            self.head,
            self.checkpoint,
        )


@torch.no_grad()
def extract(
    module: RCAModule, images: list[Sample], scale: float, checkpoint: str, told: Callable[[int], None]
) -> CachedSplit:
    """Features of photographs.

    Args:
        module: the trained network.
        images: of a split, with masks.
        scale: factor on their size.
        checkpoint: where the network comes from.
        told: called with the number of images that are done.
    """
    backbone = module.eval().network.backbone
    stages: list[Tensor] = []
    tags: list[Tensor] = []
    masks: list[Tensor] = []
    ids: list[str] = []
    for number in range(len(images)):
        sample = images[number]
        size = [max(1, round(side * scale)) for side in sample["image"].shape[1:]]
        view = F.interpolate(sample["image"][None], size, mode="bilinear", antialias=scale < 1)
        maps = backbone.last_stages(view, STAGES)
        cells = maps[-1].shape[2:]
        same = [m if m.shape[2:] == cells else F.adaptive_avg_pool2d(m, cells) for m in maps]
        stages.append(torch.cat(same, dim=1)[0].half())
        ids.append(sample["image_id"])
        tags.append(sample["tags"])
        masks.append(sample["mask"].to(torch.uint8))
        told(number + 1)
    head = {key: value.clone() for key, value in module.network.coarse_head.state_dict().items()}
    widths = backbone.stage_channels(STAGES)
    return CachedSplit(ids, stages, widths, torch.stack(tags), masks, module.class_names, head, checkpoint)
