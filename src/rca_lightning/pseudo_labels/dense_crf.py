"""Dense CRF (fully connected conditional random field) by the optional package pydensecrf2."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from rca_lightning.errors import require_extra
from rca_lightning.pseudo_labels.labels import check_count, check_images, check_maps, check_positive

SMOOTH_REACH, COLOUR_REACH = 3.0, 50.0
"""Standard deviations in pixels of the two terms."""
_LEAST_PROBABILITY = 1e-5  # its negative logarithm is the highest energy


@torch.no_grad()
def dense_crf(
    maps: Tensor,
    images: Tensor,
    *,
    iterations: int = 10,
    smooth_weight: float = 3.0,
    smooth_reach: float = SMOOTH_REACH,
    colour_weight: float = 4.0,
    colour_reach: float = COLOUR_REACH,
    colour_tolerance: float = 5.0,
) -> Tensor:
    """Mean-field marginals of a CRF that links all pairs of pixels (Krähenbühl & Koltun, NIPS 2011, arXiv 1210.5644).

    The unary energy is the negative logarithm of the maps, scaled to sum to 1 at each pixel. Two Potts terms make
    neighbours agree: one by distance alone, one by distance and colour. Only channels that are above 0 somewhere take
    part, as the cost grows with their number; the others stay 0. The inference runs on the CPU, image by image.

    The defaults are weaker than in most examples of its use, which start from the probabilities of a segmentation
    network: maps are softer, and a strong CRF spreads the background over the objects. What they give on photographs:
    experiments/voc2012_mini.

    Args:
        maps: `(B, C, H, W)` in `[0, 1]`, the background among them.
        images: `(B, 3, H, W)` in `[0, 1]`, not normalised for a network.
        iterations: of the mean field, 1 or more.
        smooth_weight: of the term by distance, above 0.
        smooth_reach: its standard deviation in pixels, above 0.
        colour_weight: of the term by distance and colour, above 0.
        colour_reach: its standard deviation in pixels, above 0.
        colour_tolerance: its standard deviation in grey levels of 0..255, above 0.

    Returns:
        `(B, C, H, W)` float32 in `[0, 1]` on the device of the maps; sums to 1 at each pixel if any channel takes part.

    Raises:
        ArgumentError: for a value out of its range, maps or images that are not finite and in `[0, 1]`, or images of
            another number or size than the maps.
        MissingExtraError: without the package; the extra `crf` brings it.
    """
    weights = {"smooth_weight": smooth_weight, "smooth_reach": smooth_reach, "colour_weight": colour_weight}
    check_count("iterations", iterations, least=1)
    for name, value in (weights | {"colour_reach": colour_reach, "colour_tolerance": colour_tolerance}).items():
        check_positive(name, value)
    check_maps(maps, dims=4)
    check_images(images, maps)
    package = require_extra("pydensecrf.densecrf", extra="crf", needed_for="dense_crf")
    marginals = torch.zeros_like(maps, dtype=torch.float32)
    for scores, image, result in zip(maps, images, marginals, strict=True):
        present = scores.flatten(1).gt(0).any(1)
        if not present.any():
            continue
        probabilities = scores[present].float().cpu().clamp_min(_LEAST_PROBABILITY)
        probabilities /= probabilities.sum(0)
        count, height, width = probabilities.shape
        field = package.DenseCRF2D(width, height, count)
        # (C', H, W) -> (C', HW)
        field.setUnaryEnergy(np.ascontiguousarray((-probabilities.log()).flatten(1).numpy()))
        field.addPairwiseGaussian(sxy=smooth_reach, compat=smooth_weight)
        # (3, H, W) in [0, 1] -> (H, W, 3) in 0..255
        pixels = (image.float().cpu().clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0)
        field.addPairwiseBilateral(
            sxy=colour_reach, srgb=colour_tolerance, rgbim=np.ascontiguousarray(pixels), compat=colour_weight
        )
        inferred = np.asarray(field.inference(iterations), dtype=np.float32)
        # (C', HW) -> (C', H, W)
        result[present] = torch.from_numpy(inferred).view(count, height, width).to(result)
    return marginals
