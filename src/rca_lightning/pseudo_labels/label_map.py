"""From class maps to a label image: 0 background, class + 1, and 255 where the maps do not decide."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.background import background_score, threshold_background
from rca_lightning.pseudo_labels.inputs import check_maps, check_positive, check_same_cells, check_share

BackgroundRule = Literal["fixed", "power", "saliency", "two_thresholds"]
IGNORED = 255  # pixels that no loss and no score looks at


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
    ignored = torch.full_like(weak, IGNORED)
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
    if len(set(given)) < len(given) or any(not 0 <= index < IGNORED - 1 for index in given):
        raise ArgumentError("classes", given, "give each class once, from 0 to 253: 255 marks ignored pixels")
