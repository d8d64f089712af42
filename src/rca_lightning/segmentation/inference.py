"""Inference: multi-scale label probabilities and label images of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.data.visualization import colours
from rca_lightning.pseudo_labels.dense_crf import dense_crf
from rca_lightning.rca.inference import MAX_SIDE, multi_scale_flip, view_sizes

_CRF_MIN_PROBABILITY = 0.05  # labels below it everywhere are left out: the cost of the CRF grows with their number


@dataclass
class LabelImage:
    """Predicted labels of one photograph.

    Attributes:
        labels: `(H, W)` uint8: 0 background, 1..L the classes.
        confidence: mean over the pixels of the greatest probability the network gives, in `[0, 1]`.
    """

    labels: Tensor
    confidence: float


@torch.no_grad()
def label_probabilities(
    network: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    max_side: int = MAX_SIDE,
) -> Tensor:
    """Computes the probabilities of every label, averaged over scales and flips.

    Args:
        network: gives logits `(B, L + 1, h, w)`; in evaluation mode.
        images: `(B, 3, H, W)`, normalised.
        scales: factors on the image size.
        flip: whether to add the mirrored image at every scale.
        max_side: longest side of a view and of the result in pixels; see `multi_scale_flip`.

    Returns:
        `(B, L + 1, H, W)` float32, summing to 1 at each pixel; smaller, with `max_side`, for a larger photograph.
    """
    (size,) = view_sizes((images.shape[2], images.shape[3]), scales=(1.0,), max_side=max_side)
    total: Tensor | None = None
    count = 0
    for view, mirrored in multi_scale_flip(images, scales=scales, flip=flip, max_side=max_side):
        logits = network(view).float()
        # Enlarged as logits, as the loss sees them.
        enlarged = F.interpolate(logits.flip(3) if mirrored else logits, size, mode="bilinear", align_corners=False)
        probabilities = enlarged.softmax(1)
        total = probabilities if total is None else total.add_(probabilities)
        count += 1
    assert total is not None  # `multi_scale_flip` refuses to give none
    return total.div_(count)


@torch.no_grad()
def label_images(
    network: nn.Module,
    images: Tensor,
    *,
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    max_side: int = MAX_SIDE,
    crf: bool = False,
    tags: Tensor | None = None,
) -> list[LabelImage]:
    """Predicts the label of every pixel: `draw_labels` of `label_probabilities`.

    Args:
        network: a `SegmentationNetwork`.
        images: `(B, 3, H, W)`, normalised.
        scales: as for `label_probabilities`.
        flip: as for `label_probabilities`.
        max_side: as for `label_probabilities`.
        crf: as for `draw_labels`.
        tags: as for `draw_labels`.

    Returns:
        One `LabelImage` for each photograph, on the device of the images.

    Raises:
        MissingExtraError: for `crf` without its package.
    """
    probabilities = label_probabilities(network, images, scales=scales, flip=flip, max_side=max_side)
    return draw_labels(probabilities, images, tags=tags, crf=crf, max_side=max_side)


@torch.no_grad()
def draw_labels(
    probabilities: Tensor,
    images: Tensor,
    *,
    tags: Tensor | None = None,
    crf: bool = False,
    max_side: int = MAX_SIDE,
) -> list[LabelImage]:
    """Takes the most probable label of every pixel.

    Args:
        probabilities: `(B, L + 1, h, w)`, summing to 1 at each pixel; of the photographs' size or smaller.
        images: `(B, 3, H, W)`, the photographs, normalised.
        tags: `(B, L)`, above 0 for the classes an image shows: only these and the background are drawn, and their
            probabilities are made to sum to 1. In a row below 0, and with `None`, the tags are unknown, and every class
            may be drawn.
        crf: whether a fully connected CRF refines the probabilities, enlarged to the photographs; see `dense_crf`.
        max_side: longest side in pixels of what the CRF sees of a larger photograph.

    Returns:
        One `LabelImage` for each photograph, on the device of the images.

    Raises:
        MissingExtraError: for `crf` without its package.
    """
    if tags is not None:
        probabilities = restrict_to_tags(probabilities, tags)
    confidences = probabilities.amax(1).mean((1, 2)).tolist()
    if crf:
        probabilities = _apply_crf(probabilities, images, max_side)
    size = (images.shape[2], images.shape[3])
    return [
        LabelImage(strongest_label(scores, size), confidence)
        for scores, confidence in zip(probabilities, confidences, strict=True)
    ]


def strongest_label(scores: Tensor, size: tuple[int, int]) -> Tensor:
    """Enlarges scores and takes the label of the highest at each pixel, of equal ones the lower.

    Args:
        scores: `(L + 1, h, w)`.
        size: `(H, W)` to enlarge them to.

    Returns:
        `(H, W)` uint8.
    """
    if tuple(scores.shape[1:]) == size:
        return scores.argmax(0).to(torch.uint8)
    # One label at a time: all 81 of COCO would take 4 GB at 12 megapixels.
    best = scores.new_full(size, -torch.inf)
    labels = torch.zeros(size, dtype=torch.uint8, device=scores.device)
    for label, score in enumerate(scores):
        enlarged = F.interpolate(score[None, None], size, mode="bilinear", align_corners=False)[0, 0]
        labels[enlarged > best] = label
        best = torch.maximum(best, enlarged)
    return labels


def restrict_to_tags(probabilities: Tensor, tags: Tensor) -> Tensor:
    """Keeps the probabilities `(B, L + 1, h, w)` of the tags and the background, and rescales them to a sum of 1."""
    allowed = F.pad(tags > 0, (1, 0), value=True)  # (B, L) -> (B, L + 1)
    allowed |= (tags < 0).any(dim=1, keepdim=True)
    kept = probabilities * allowed[:, :, None, None]
    return kept / kept.sum(1, keepdim=True).clamp_min(torch.finfo(kept.dtype).tiny)


def _apply_crf(probabilities: Tensor, images: Tensor, max_side: int) -> Tensor:
    (size,) = view_sizes((images.shape[2], images.shape[3]), scales=(1.0,), max_side=max_side)
    # On a grid of cells the reach of the CRF, in pixels, would span objects.
    if probabilities.shape[2:] != size:
        probabilities = F.interpolate(probabilities, size, mode="bilinear", align_corners=False).clamp(0, 1)
    if images.shape[2:] != size:
        images = F.interpolate(images, size, mode="bilinear", antialias=True)
    pictures = torch.stack([colours(image) for image in images])
    possible = probabilities.amax((2, 3), keepdim=True) >= _CRF_MIN_PROBABILITY
    return dense_crf(probabilities * possible, pictures)
