"""Kinds of class maps, and the background thresholds that suit each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rca_lightning.arguments import check_arguments

MapKind = Literal["contrasted_attention", "attention", "propagated_cam", "cam"]
"""What class maps are: attention to prototypes that contrast has trained or not, or CAMs, propagated or as they are."""


@dataclass(frozen=True, kw_only=True)
class KindThresholds:
    """Thresholds of a kind of class maps, about the best on training images of VOC.

    Attributes:
        background: below which the strongest map is background.
        low: below which it is surely background.
        high: above which it is surely an object.
        offset: of the background threshold that is chosen without masks; see `AutoThreshold`.
    """

    background: float
    low: float
    high: float
    offset: float


_THRESHOLDS: dict[MapKind, KindThresholds] = {
    "contrasted_attention": KindThresholds(background=0.5, low=0.3, high=0.7, offset=0.125),
    "attention": KindThresholds(background=0.7, low=0.5, high=0.8, offset=0.125),
    "propagated_cam": KindThresholds(background=0.3, low=0.05, high=0.3, offset=0.0),
    "cam": KindThresholds(background=0.15, low=0.05, high=0.3, offset=-0.1),
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


@check_arguments
def default_thresholds(kind: MapKind) -> dict[str, float]:
    """Default `background_threshold`, `low` and `high` of labels that are drawn from a kind of class maps."""
    of_kind = _THRESHOLDS[kind]
    return {"background_threshold": of_kind.background, "low": of_kind.low, "high": of_kind.high}


@check_arguments
def thresholds_of(kind: MapKind) -> KindThresholds:
    """Thresholds that suit a kind of class maps."""
    return _THRESHOLDS[kind]
