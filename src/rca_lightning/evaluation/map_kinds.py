"""Kinds of class maps, and the background thresholds that suit each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MapKind = Literal["contrasted_attention", "attention", "propagated_cam", "cam"]
"""What class maps are: attention to prototypes that contrast has trained or not, or CAMs, propagated or as they are."""


@dataclass(frozen=True, kw_only=True)
class KindThresholds:
    """Thresholds of a kind of class maps, chosen on one half of the training images of VOC.

    Attributes:
        background: below which the strongest map is background.
        low: below which it is surely background.
        high: above which it is surely an object.
        strength: mean strength of the stronger group of pixels of the maps that `background` was chosen on.
    """

    background: float
    low: float
    high: float
    strength: float


_THRESHOLDS: dict[MapKind, KindThresholds] = {
    "contrasted_attention": KindThresholds(background=0.5, low=0.3, high=0.7, strength=0.78),
    "attention": KindThresholds(background=0.7, low=0.5, high=0.8, strength=0.88),
    "propagated_cam": KindThresholds(background=0.3, low=0.05, high=0.3, strength=0.62),
    "cam": KindThresholds(background=0.15, low=0.05, high=0.3, strength=0.48),
}


def map_kind(*, attention: bool, contrasted: bool, propagated: bool) -> MapKind:
    """The kind of class maps.

    Args:
        attention: whether they are the attention of pixels to prototypes, else they are CAMs.
        contrasted: whether contrast has trained the prototypes.
        propagated: whether they were propagated inside the image.
    """
    if attention:
        return "contrasted_attention" if contrasted else "attention"
    return "propagated_cam" if propagated else "cam"


def default_thresholds(kind: MapKind) -> dict[str, float]:
    """Default `background_threshold`, `low` and `high` of labels that are drawn from a kind of class maps."""
    of_kind = _THRESHOLDS[kind]
    return {"background_threshold": of_kind.background, "low": of_kind.low, "high": of_kind.high}


def thresholds_of(kind: MapKind) -> KindThresholds:
    """Thresholds that suit a kind of class maps."""
    return _THRESHOLDS[kind]
