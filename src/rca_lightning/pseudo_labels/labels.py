"""From class maps to a label image: 0 background, class + 1, and 255 where the maps do not decide."""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.errors import ArgumentError

# Averages of values in [0, 1] leave the interval by rounding only.
_ROUNDING = 1e-3


def check_share(name: str, value: float) -> None:
    """Refuse a number outside `[0, 1]`."""
    if not 0 <= value <= 1:
        raise ArgumentError(name, value, "give a number in [0, 1]")


def check_count(name: str, value: int, *, least: int) -> None:
    """Refuse a whole number below `least`."""
    if value < least:
        raise ArgumentError(name, value, f"give {least} or more")


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ArgumentError(name, value, "give a number above 0")


def check_maps(maps: Tensor, *, name: str = "maps", dims: int = 3) -> None:
    """Refuse maps that are not floating, finite and in `[0, 1]`, or have not `dims` axes."""
    _check_layout(maps, name, dims, "(K, H, W)" if dims == 3 else "(B, K, H, W)")
    _check_range(maps, name, "divide each map by its maximum, as max_normalise does")


def check_images(images: Tensor, maps: Tensor, *, name: str = "images") -> None:
    """Refuse images `(..., 3, H, W)` that are not colours in `[0, 1]`, or not of the batch and size of `maps`."""
    _check_layout(images, name, maps.ndim, "(3, H, W)" if maps.ndim == 3 else "(B, 3, H, W)")
    if images.shape[-3] != 3:
        raise ArgumentError(name, tuple(images.shape), "give 3 colours: (3, H, W) for each image")
    check_same_cells(images, maps, name=name)
    _check_range(images, name, "undo the normalisation of the network's input and divide 0..255 by 255")


def check_same_cells(other: Tensor, maps: Tensor, *, name: str) -> None:
    """Refuse a tensor `(..., H, W)` of another batch or size than the maps `(..., K, H, W)`."""
    if other.shape[-2:] != maps.shape[-2:]:
        height, width = maps.shape[-2:]
        raise ArgumentError(name, tuple(other.shape), f"the maps are {height} x {width}; resize one to the other")
    if other.ndim == maps.ndim == 4 and len(other) != len(maps):
        raise ArgumentError(name, tuple(other.shape), f"there are maps for {len(maps)} images; give as many")


def check_finite(values: Tensor, *, name: str) -> None:
    """Refuse NaN and infinity."""
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


class Levels(NamedTuple):
    """Strengths in `[0, 1]` that maps of one kind are compared with.

    Attributes:
        threshold: of the rule "fixed".
        low: of the rules "two_thresholds" and "saliency".
        high: of the same.
    """

    threshold: float
    low: float
    high: float

    @staticmethod
    def of(*, attention: bool) -> Levels:
        """About what was best on VOC photographs: the attention is flat and wide, CAMs have peaks."""
        return Levels(0.7, 0.5, 0.8) if attention else Levels(0.2, 0.05, 0.3)

    def replaced(self, threshold: float | None, low: float | None, high: float | None) -> Levels:
        """These, but for those that are given."""
        given = zip(self, (threshold, low, high), strict=True)
        return Levels(*(own if value is None else value for own, value in given))


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


BackgroundRule = Literal["fixed", "power", "saliency", "two_thresholds"]


def label_map(
    maps: Tensor,
    classes: Tensor,
    *,
    rule: BackgroundRule = "fixed",
    threshold: float = 0.2,
    power: float = 8.0,
    low: float = 0.05,
    high: float = 0.3,
    saliency: Tensor | None = None,
    saliency_threshold: float = 0.5,
) -> Tensor:
    """Label image of one photograph. With `m` the strongest map of a pixel:

    - "fixed": its class where `m > threshold`, else background.
    - "power": its class where `m > (1 - m)^power`, else background; see `background_score`.
    - "two_thresholds": its class where `m > high`, background where `m <= low`, ignored between (as the seeds of
      Ahn, Cho & Kwak, CVPR 2019, arXiv 1904.05044; the defaults are theirs).
    - "saliency": a pixel is salient where `saliency > saliency_threshold`. Salient: its class where `m > low`, else
      ignored (an object of no known class). Not salient: background, but ignored where `m > high`, as map and saliency
      contradict each other there.

    Args:
        maps: `(K, H, W)` in `[0, 1]`; K may be 0.
        classes: `(K,)` integers in `[0, 253]`, the class of each map, each once.
        rule: where the background begins.
        threshold: of "fixed", in `[0, 1]`.
        power: of "power", above 0.
        low: of "two_thresholds" and "saliency", in `[0, high]`.
        high: of "two_thresholds" and "saliency", in `[low, 1]`.
        saliency: of "saliency", `(H, W)` in `[0, 1]`.
        saliency_threshold: of "saliency", in `[0, 1]`.

    Returns:
        `(H, W)` uint8: 0 background, class + 1 its pixels, 255 ignored.

    Raises:
        ArgumentError: for an unknown rule, a value out of its range, maps or saliency that are not finite and in
            `[0, 1]` or not of one size, classes that do not fit the maps, or "saliency" without a saliency map.

    Example:
        >>> maps, classes = torch.tensor([[[0.9, 0.2, 0.0]], [[0.1, 0.1, 0.04]]]), torch.tensor([14, 6])
        >>> label_map(maps, classes, rule="two_thresholds")
        tensor([[ 15, 255,   0]], dtype=torch.uint8)
    """
    check_rule(rule, threshold=threshold, power=power, low=low, high=high, saliency_threshold=saliency_threshold)
    check_maps(maps)
    _check_classes(classes, maps)
    if rule == "fixed" or rule == "power":
        score = background_score(maps, rule=rule, threshold=threshold, power=power)
        return _as_classes(threshold_background(maps, score), classes)
    weak, strong = (_as_classes(threshold_background(maps, level), classes) for level in (low, high))
    salient = salient_pixels(saliency, maps, threshold=saliency_threshold) if rule == "saliency" else None
    return join_labels(weak, strong, salient=salient)


def check_rule(
    rule: str, *, threshold: float, power: float, low: float, high: float, saliency_threshold: float
) -> None:
    """Refuse a rule that `label_map` does not know, and settings out of their range.

    Raises:
        ArgumentError: for the first of them.
    """
    rules = get_args(BackgroundRule)
    if rule not in rules:
        raise ArgumentError("rule", rule, f"give one of {', '.join(rules)}")
    shares = {"threshold": threshold, "low": low, "high": high, "saliency_threshold": saliency_threshold}
    for name, value in shares.items():
        check_share(name, value)
    check_positive("power", power)
    if low > high and rule in {"saliency", "two_thresholds"}:
        raise ArgumentError("low", low, f"give at most high={high}")


def join_labels(weak: Tensor, strong: Tensor, *, salient: Tensor | None = None) -> Tensor:
    """One label image of two: one made with a low background, one with a high background that only cores exceed.

    Without `salient`: a class where `strong` has one, background where `weak` is background, ignored between. With it:
    a salient pixel has the class of `weak`, or is ignored if that is background; any other pixel is background, but
    ignored where `strong` has a class.

    Args:
        weak: `(H, W)` uint8.
        strong: `(H, W)` uint8.
        salient: `(H, W)` bool, or None.

    Returns:
        `(H, W)` uint8.
    """
    ignored = torch.full_like(weak, IGNORE_INDEX)
    if salient is None:
        return torch.where(strong > 0, strong, torch.where(weak > 0, ignored, weak))
    inside = torch.where(weak > 0, weak, ignored)
    outside = torch.where(strong > 0, ignored, torch.zeros_like(ignored))
    return torch.where(salient.to(weak.device), inside, outside)


def salient_pixels(saliency: Tensor | None, maps: Tensor, *, threshold: float) -> Tensor:
    """Where a photograph is salient, for the rule "saliency".

    Args:
        saliency: `(H, W)` in `[0, 1]`.
        maps: `(K, H, W)` of the photograph.
        threshold: that a salient pixel exceeds.

    Returns:
        `(H, W)` bool, on the device of the maps.

    Raises:
        ArgumentError: without a map, or for one that is not finite, not in `[0, 1]`, or not of the size of the maps.
    """
    if saliency is None:
        raise ArgumentError("saliency", None, "rule='saliency' needs a saliency map (H, W) of the photograph")
    if saliency.ndim != 2:
        raise ArgumentError("saliency", tuple(saliency.shape), "give (H, W)")
    check_maps(saliency[None], name="saliency")
    check_same_cells(saliency, maps, name="saliency")
    return saliency.to(maps.device) > threshold


def label_scores(scores: Tensor, classes: Tensor) -> Tensor:
    """Label image of scores in which the background is the first channel, as `refine` returns them.

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
    return _as_classes(threshold_background(scores[1:], scores[0]), classes)


def _as_classes(labels: Tensor, classes: Tensor) -> Tensor:
    # labels count within the given maps; label images count over all classes
    lookup = torch.cat([classes.new_zeros(1), classes + 1]).to(labels)
    return lookup[labels.long()]


def _check_classes(classes: Tensor, maps: Tensor) -> None:
    given = classes.tolist()
    if classes.is_floating_point() or classes.shape != maps.shape[:1]:
        raise ArgumentError("classes", given, f"give one integer for each of the {len(maps)} class maps")
    if len(set(given)) < len(given) or any(not 0 <= index < IGNORE_INDEX - 1 for index in given):
        raise ArgumentError("classes", given, "give each class once, from 0 to 253: 255 marks ignored pixels")
