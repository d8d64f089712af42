"""Where the background begins: as a channel of its own that competes with the class maps."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.inputs import check_maps, check_share

BackgroundScore = Literal["fixed", "power"]


def background_score(
    maps: Tensor, *, rule: BackgroundScore = "fixed", threshold: float = 0.2, power: float = 8.0
) -> Tensor:
    """How much speaks for background at each pixel, on the scale of the class maps.

    - "fixed": `threshold` everywhere.
    - "power": `(1 - max_l M_l)^power` (Ahn & Kwak, CVPR 2018, arXiv 1803.10464, section 3.2). It is 1 where no class is
      seen and falls off the faster the greater `power`. Before refinement this is a fixed threshold at the level `m`
      with `(1 - m)^power = m`: 0.38 for 2, 0.28 for 4, 0.19 for 8, 0.13 for 16. In a refinement it says more than a
      constant, since a sure background spreads further than a doubtful one.

    Args:
        maps: `(K, H, W)` in `[0, 1]`; without any map the background is as sure as can be.
        rule: see above.
        threshold: of "fixed", in `[0, 1]`.
        power: of "power", above 0.

    Returns:
        `(H, W)` in `[0, 1]`, on the device of the maps.

    Raises:
        ArgumentError: for an unknown rule, a value out of its range, or maps that are not finite and in `[0, 1]`.

    Example:
        >>> background_score(torch.tensor([[[0.0, 0.5]], [[0.25, 0.0]]]), rule="power", power=2)
        tensor([[0.5625, 0.2500]])
    """
    check_maps(maps)
    if rule == "fixed":
        check_share("threshold", threshold)
        return maps.new_full(maps.shape[1:], threshold)
    if rule != "power":
        raise ArgumentError("rule", rule, "give 'fixed' or 'power'")
    if not 0 < power < float("inf"):
        raise ArgumentError("power", power, "give a number above 0; 8 is about a fixed threshold of 0.19")
    strength = maps.amax(0) if len(maps) else maps.new_zeros(maps.shape[1:])
    # Rounding in a refinement may leave a map above 1 by a hair, and no power of a negative number is wanted.
    return (1 - strength).clamp_min(0) ** power


def threshold_background(maps: Tensor, threshold: float | Tensor) -> Tensor:
    """Label each pixel with its strongest class, or with background where none exceeds the threshold.

    Args:
        maps: `(L, H, W)` in `[0, 1]`.
        threshold: in `[0, 1]`; a pixel whose strongest map is not above it is background. A tensor `(H, W)`, such as
            `background_score` returns, is a threshold for each pixel.

    Returns:
        `(H, W)` uint8: 0 background, class index + 1 elsewhere.
    """
    if len(maps) == 0:
        return torch.zeros(maps.shape[1:], dtype=torch.uint8, device=maps.device)
    strength, label = maps.max(dim=0)
    return torch.where(strength > threshold, label + 1, torch.zeros_like(label)).to(torch.uint8)
