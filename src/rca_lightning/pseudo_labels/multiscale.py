"""Maps at the size of the photograph, averaged over scales and flips."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.models.cam import image_logits, max_normalise
from rca_lightning.models.network import FinalMap, RCANetwork


@dataclass
class Seeds:
    """Class maps of one photograph, of the classes that may occur in it.

    Attributes:
        maps: `(K, H, W)` float32 in `[0, 1]`, each with maximum 1 or all 0.
        classes: `(K,)` int64, class of each map, ascending.
        probabilities: `(L,)`, image probability of every class.
    """

    maps: Tensor
    classes: Tensor
    probabilities: Tensor


@torch.no_grad()
def infer_seeds(
    network: RCANetwork,
    images: Tensor,
    tags: Tensor | None = None,
    *,
    final_map: FinalMap = "attention",
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    tag_threshold: float = 0.5,
) -> list[Seeds]:
    """Class maps of whole images.

    The maps of all scales and flips are averaged before they are normalised, so a view in which a class
    is hardly seen counts little.

    Args:
        network: in evaluation mode.
        images: `(B, 3, H, W)`, normalised.
        tags: `(B, L)`, 0 or 1: the classes to keep. `None` where unknown: those with an image probability
            above `tag_threshold`, or the most probable one.
        final_map: which map is read; see `ActivationMaps.read`.
        scales: factors on the image size.
        flip: whether to add the mirrored image at every scale.
        tag_threshold: in `[0, 1]`.

    Returns:
        One `Seeds` for each image.
    """
    size = (images.shape[2], images.shape[3])
    maps: list[Tensor] = []
    logits: list[Tensor] = []
    for scale in scales:
        target = [max(1, round(side * scale)) for side in size]
        scaled = images if scale == 1.0 else F.interpolate(images, target, mode="bilinear", antialias=scale < 1)
        for mirrored in (False, True) if flip else (False,):
            view = network(scaled.flip(3) if mirrored else scaled, tags)
            read = view.read(final_map)
            maps.append(read.flip(3) if mirrored else read)
            logits.append(image_logits(view.coarse))
    reference = max((m.shape[2:] for m in maps), key=lambda cells: cells[0] * cells[1])
    mean = torch.stack([m if m.shape[2:] == reference else _resize(m, reference) for m in maps]).mean(0)
    probabilities = torch.stack(logits).mean(0).sigmoid()
    seeds = []
    for index in range(len(images)):
        keep = _kept(probabilities[index], None if tags is None else tags[index], tag_threshold)
        # Only kept classes are enlarged: 80 maps of a photograph would take 100 MB.
        enlarged = _resize(mean[index : index + 1, keep], size)[0] if len(keep) else mean.new_zeros(0, *size)
        seeds.append(Seeds(max_normalise(enlarged), keep, probabilities[index]))
    return seeds


def _kept(probabilities: Tensor, tags: Tensor | None, tag_threshold: float) -> Tensor:
    if tags is not None:
        return torch.nonzero(tags > 0)[:, 0]
    keep = torch.nonzero(probabilities > tag_threshold)[:, 0]
    return keep if len(keep) else probabilities.argmax()[None]


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
