"""Seeds from cached features, scored at the size of the photographs."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from frozen.features import CachedSplit

from rca_lightning import RCAModule
from rca_lightning.evaluation.seed_iou import Evaluation
from rca_lightning.rca.cam import max_normalise
from rca_lightning.rca.inference import ClassMaps, infer_class_maps


@torch.no_grad()
def score(module: RCAModule, split: CachedSplit, name: str) -> dict[str, Any]:
    """What `rca validate` would write of one view of each image with its true tags.

    Args:
        module: from `trained_module`.
        split: the images.
        name: of the split.
    """
    evaluation = Evaluation(len(split.class_names))
    for stages, tags, mask in zip(split.stages, split.tags, split.masks, strict=True):
        view = stages[None].float().to(module.device)
        final_map = module.hparams["final_map"]
        [seeds] = infer_class_maps(module.network, view, tags[None].to(view.device), final_map=final_map, flip=False)
        maps = F.interpolate(seeds.maps[None], size=mask.shape, mode="bilinear", align_corners=False)[0]
        enlarged = ClassMaps(max_normalise(maps).cpu(), seeds.classes.cpu(), seeds.probabilities.cpu())
        evaluation.update([enlarged], tags[None], mask[None])
    result = evaluation.finish()
    assert result is not None  # every image has a mask
    return result.as_dict(split=name, tags="image", class_names=split.class_names)
