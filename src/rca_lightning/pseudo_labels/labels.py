"""Label images from class maps: 0 background, class + 1, and 255 where the maps do not decide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError, refuse_removed
from rca_lightning.evaluation.protocol import ThresholdSource

# Rounding may move averages of values in [0, 1] slightly outside.
_ROUNDING = 1e-3


def check_share(name: str, value: float) -> None:
    """Refuses a number outside `[0, 1]`."""
    if not 0 <= value <= 1:
        raise ArgumentError(name, value, "give a number in [0, 1]")


def check_count(name: str, value: int, *, least: int) -> None:
    """Refuses a whole number below `least`."""
    if value < least:
        raise ArgumentError(name, value, f"give {least} or more")


def check_positive(name: str, value: float) -> None:
    """Refuses a number that is not above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ArgumentError(name, value, "give a number above 0")


def check_maps(maps: Tensor, *, name: str = "maps", dims: int = 3) -> None:
    """Refuses maps that are not floating, finite and in `[0, 1]`, or have not `dims` axes."""
    _check_layout(maps, name, dims, "(K, H, W)" if dims == 3 else "(B, K, H, W)")
    _check_range(maps, name, "divide each map by its maximum, as max_normalise does")


def check_images(images: Tensor, maps: Tensor, *, name: str = "images") -> None:
    """Refuses images `(..., 3, H, W)` that are not colours in `[0, 1]`, or not of the batch and size of `maps`."""
    _check_layout(images, name, maps.ndim, "(3, H, W)" if maps.ndim == 3 else "(B, 3, H, W)")
    if images.shape[-3] != 3:
        raise ArgumentError(name, tuple(images.shape), "give 3 colours: (3, H, W) for each image")
    check_same_cells(images, maps, name=name)
    _check_range(images, name, "undo the normalisation of the network's input and divide 0..255 by 255")


def check_same_cells(other: Tensor, maps: Tensor, *, name: str) -> None:
    """Refuses a tensor `(..., H, W)` of another batch or size than the maps `(..., K, H, W)`."""
    if other.shape[-2:] != maps.shape[-2:]:
        height, width = maps.shape[-2:]
        raise ArgumentError(name, tuple(other.shape), f"the maps are {height} x {width}; resize one to the other")
    if other.ndim == maps.ndim == 4 and len(other) != len(maps):
        raise ArgumentError(name, tuple(other.shape), f"there are maps for {len(maps)} images; give as many")


def check_finite(values: Tensor, *, name: str) -> None:
    """Refuses NaN and infinity."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ArgumentError(name, f"{bad} of {values.numel()} values NaN or infinite", "give finite numbers")


def _check_layout(values: Tensor, name: str, dims: int, layout: str) -> None:
    if values.ndim != dims or not values.is_floating_point():
        raise ArgumentError(name, f"{tuple(values.shape)} {values.dtype}", f"give floating point {layout}")


def _check_range(values: Tensor, name: str, remedy: str) -> None:
    check_finite(values, name=name)
    if values.numel() == 0:
        return
    low, high = (float(bound) for bound in values.aminmax())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ArgumentError(name, f"values from {low:.4g} to {high:.4g}", f"give values in [0, 1]: {remedy}")


Background = Literal["fixed", "power", "saliency", "two_thresholds"]
BACKGROUND_SETTINGS: dict[str, tuple[str, ...]] = {  # that each background reads
    "fixed": ("background_threshold",),
    "power": ("power",),
    "saliency": ("low", "high", "saliency_threshold"),
    "two_thresholds": ("low", "high"),
}


_DEFAULTS = {"power": 8.0, "saliency_threshold": 0.5}  # of any kind of maps


CHOSEN: dict[str, Any] = {"threshold_chosen": "auto"}
"""Setting of a folder whose background threshold is chosen without masks; it stands beside the threshold."""


def check_automatic(threshold: object, background: str) -> None:
    """Refuses the threshold "auto" of a background that has no single threshold."""
    if threshold == "auto" and background != "fixed":
        raise ArgumentError("background_threshold", threshold, "it is of background='fixed'; leave one of them out")


def automatic_threshold(settings: Mapping[str, Any]) -> float | None:
    """The threshold that was chosen without masks for a folder of labels with these settings; `None`: there is none."""
    threshold = settings.get("background_threshold")
    is_chosen = all(settings.get(name) == value for name, value in CHOSEN.items())
    return float(threshold) if is_chosen and isinstance(threshold, (int, float)) else None


@check_arguments
def threshold_source(background: Background, given: Mapping[str, Any]) -> ThresholdSource:
    """Says for the protocol of a score whether what tells the background was given, chosen, or is a default.

    Args:
        background: how the background is told.
        given: settings by name; those that are missing, None, or what they are by default were not given.
    """
    values = {name: given.get(name) for name in BACKGROUND_SETTINGS[background]}
    if values.get("background_threshold") == "auto":
        return "auto"
    return "given" if any(value not in (None, _DEFAULTS.get(name)) for name, value in values.items()) else "default"


@refuse_removed(rule="renamed in 0.2; give background='fixed', 'power', 'saliency' or 'two_thresholds'")
@check_arguments
def background_score(
    maps: Tensor, *, background: Literal["fixed", "power"] = "fixed", threshold: float = 0.2, power: float = 8.0
) -> Tensor:
    """Scores the background at each pixel, on the scale of the class maps.

    - "fixed": `threshold` everywhere.
    - "power": `(1 - max_l M_l)^power` (Ahn & Kwak, CVPR 2018, arXiv 1803.10464, section 3.2). It is 1 where no class is
      seen and falls off the faster the greater `power`. Before refinement this is a fixed threshold at the level `m`
      with `(1 - m)^power = m`: 0.38 for 2, 0.28 for 4, 0.19 for 8, 0.13 for 16. In a refinement it says more than a
      constant, since a sure background spreads further than a doubtful one.

    Args:
        maps: `(K, H, W)` in `[0, 1]`; K may be 0.
        background: see above.
        threshold: of "fixed", in `[0, 1]`.
        power: of "power", above 0.

    Returns:
        `(H, W)` in `[0, 1]`, on the device of the maps.

    Raises:
        ArgumentError: for an unknown background, a value out of its range, or maps that are not finite and in `[0, 1]`.

    Example:
        >>> background_score(torch.tensor([[[0.0, 0.5]], [[0.25, 0.0]]]), background="power", power=2)
        tensor([[0.5625, 0.2500]])
    """
    check_maps(maps)
    if background == "fixed":
        check_share("threshold", threshold)
        return maps.new_full(maps.shape[1:], threshold)
    check_positive("power", power)
    strength = maps.amax(0) if len(maps) else maps.new_zeros(maps.shape[1:])
    # Rounding in a refinement may leave a map slightly above 1; a power of a negative number would be NaN.
    return (1 - strength).clamp_min(0) ** power


def threshold_background(maps: Tensor, threshold: float | Tensor) -> Tensor:
    """Labels each pixel with its strongest class, or with background where none exceeds the threshold.

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


def join_labels(weak: Tensor, strong: Tensor, *, salient: Tensor | None = None) -> Tensor:
    """Joins two label images `(H, W)` uint8: `weak` made with a low background score, `strong` with a high one.

    Without `salient`: a class where `strong` has one, background where `weak` is background, ignored between (as the
    seeds of Ahn, Cho & Kwak, CVPR 2019, arXiv 1904.05044). With `salient`, `(H, W)` bool: a salient pixel has the class
    of `weak`, or is ignored if that is background (an object of no known class); any other pixel is background, but
    ignored where `strong` has a class, as map and saliency contradict each other there.
    """
    ignored = torch.full_like(weak, IGNORE_INDEX)
    if salient is None:
        return torch.where(strong > 0, strong, torch.where(weak > 0, ignored, weak))
    inside = torch.where(weak > 0, weak, ignored)
    outside = torch.where(strong > 0, ignored, torch.zeros_like(ignored))
    return torch.where(salient.to(weak.device), inside, outside)


def salient_pixels(saliency: Tensor | None, maps: Tensor, *, threshold: float) -> Tensor:
    """Thresholds a saliency map `(H, W)` in `[0, 1]` of the size of `maps`; bool, on their device."""
    if saliency is None:
        raise ArgumentError("saliency", None, "background='saliency' needs a saliency map (H, W) of the photograph")
    if saliency.ndim != 2:
        raise ArgumentError("saliency", tuple(saliency.shape), "give (H, W)")
    check_maps(saliency[None], name="saliency")
    check_same_cells(saliency, maps, name="saliency")
    return saliency.to(maps.device) > threshold


def label_scores(scores: Tensor, classes: Tensor) -> Tensor:
    """Labels each pixel with its highest score; the background is the first channel.

    Args:
        scores: `(1 + K, H, W)` in `[0, 1]`; a tie with the background is background.
        classes: `(K,)` integers in `[0, 253]`, the class of each further channel, each once.

    Returns:
        `(H, W)` uint8: 0 background, class + 1 its pixels.

    Raises:
        ArgumentError: for scores that are not finite and in `[0, 1]`, or classes that do not fit them.

    Example:
        >>> label_scores(torch.tensor([[[0.6, 0.3]], [[0.4, 0.7]]]), torch.tensor([7]))
        tensor([[0, 8]], dtype=torch.uint8)
    """
    check_maps(scores, name="scores")
    if len(scores) == 0:
        raise ArgumentError("scores", tuple(scores.shape), "give the background as the first channel")
    _check_classes(classes, scores[1:])
    labels = threshold_background(scores[1:], scores[0])
    return torch.cat([classes.new_zeros(1), classes + 1]).to(labels)[labels.long()]  # index of the map -> class + 1


def _check_classes(classes: Tensor, maps: Tensor) -> None:
    given = classes.tolist()
    if classes.is_floating_point() or classes.shape != maps.shape[:1]:
        raise ArgumentError("classes", given, f"give one integer for each of the {len(maps)} class maps")
    if len(set(given)) < len(given) or any(not 0 <= index < IGNORE_INDEX - 1 for index in given):
        raise ArgumentError("classes", given, "give each class once, from 0 to 253: 255 marks ignored pixels")
