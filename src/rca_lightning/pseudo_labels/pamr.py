"""Pixel-adaptive mask refinement: every pixel takes over the labels of its neighbours of like colour."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.inputs import check_count, check_images, check_maps, check_positive
from rca_lightning.pseudo_labels.neighbours import Offset, ring, shifted, weighted_sum

# A quarter of a grey level of 255: on a plain surface, rounding alone must not look like an edge.
_LEAST_STD = 1e-3


@torch.no_grad()
def pamr(
    maps: Tensor,
    images: Tensor,
    *,
    iterations: int = 10,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    sharpness: float = 10.0,
) -> Tensor:
    """Draw maps towards the colour edges of the photograph, without training (Araslanov & Roth, CVPR 2020).

    Each iteration replaces the value of a pixel `i` by the mean of its neighbours `j`, the 8 around it at every
    dilation, with weights

        `a_ij = softmax_j(-sharpness * mean_c(|x_ic - x_jc| / s_ic))`,

    where `x` are the colours and `s_ic` is the standard deviation of colour `c` over the pixel and its neighbours. Thus
    contrast does not matter: the edge in a dim photograph holds as well as one in a bright one. As the weights sum
    to 1, maps stay in their range and a constant map stays as it is. Outside the photograph its border goes on.

    It works in float32 and holds `8 * len(dilations)` weights a pixel (36 MB for 375 x 500), whatever the number of
    maps. Source: arXiv 2005.08104, the part on pixel-adaptive mask refinement.

    Args:
        maps: `(B, K, H, W)` in `[0, 1]`, the background among them if it is to compete.
        images: `(B, 3, H, W)` in `[0, 1]`, not normalised for a network.
        iterations: how often; 0 gives the maps back.
        dilations: distances of the neighbours in pixels, each 1 or more; great ones reach further and cost no more.
        sharpness: how strictly colours must agree, above 0.

    Returns:
        `(B, K, H, W)` float32 in `[0, 1]`.

    Raises:
        ArgumentError: for a value out of its range, maps or images that are not finite and in `[0, 1]`, or images of
            another number or size than the maps.

    Example:
        >>> image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(1, 3, 4, 4)
        >>> maps = torch.tensor([0.9, 0.6, 0.1, 0.1]).expand(1, 1, 4, 4)
        >>> pamr(maps, image, dilations=(1,))[0, 0, 0]
        tensor([0.7846, 0.7846, 0.1000, 0.1000])
    """
    check_count("iterations", iterations, least=0)
    check_positive("sharpness", sharpness)
    if not dilations or min(dilations) < 1:
        raise ArgumentError("dilations", tuple(dilations), "give at least one distance of 1 pixel or more")
    check_maps(maps, dims=4)
    check_images(images, maps)
    values = maps.float()
    if values.numel() == 0 or iterations == 0:
        return values
    offsets = ring(dilations)
    weights = _weights(images.float(), offsets, sharpness)
    for _ in range(iterations):
        values = weighted_sum(values, weights, offsets, beyond="border")
    return values


def _weights(images: Tensor, offsets: Sequence[Offset], sharpness: float) -> Tensor:
    std = _local_std(images, offsets).add_(_LEAST_STD)
    batch, _, height, width = images.shape
    weights = images.new_empty(batch, len(offsets), height, width)
    for index, seen in enumerate(shifted(images, offsets, beyond="border")):
        weights[:, index] = ((seen - images).abs_() / std).mean(1)
    weights *= -sharpness
    weights -= weights.amax(1, keepdim=True)  # softmax in place: this tensor is by far the largest
    weights.exp_()
    weights /= weights.sum(1, keepdim=True)
    return weights


def _local_std(images: Tensor, offsets: Sequence[Offset]) -> Tensor:
    # In two passes: the mean square minus the squared mean would leave rounding on a plain surface.
    around = [(0, 0), *offsets]
    mean = torch.zeros_like(images)
    for seen in shifted(images, around, beyond="border"):
        mean += seen
    mean /= len(around)
    square = torch.zeros_like(images)
    for seen in shifted(images, around, beyond="border"):
        difference = seen - mean
        square.addcmul_(difference, difference)
    return (square / len(around)).sqrt_()
