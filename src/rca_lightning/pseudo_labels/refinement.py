"""Refinement of background and class scores by named steps, one after the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.dense_crf import COLOUR_REACH, SMOOTH_REACH, dense_crf
from rca_lightning.pseudo_labels.propagation import pamr, random_walk
from rca_lightning.pseudo_labels.proposals import LEAST_PIXELS, SCALE, Proposals, superpixels
from rca_lightning.rca.inference import MAX_SIDE, view_sizes

RefinementName = Literal["random_walk", "pamr", "dense_crf", "affinity", "proposals"]

_NOT_FIRST = "it walks class maps before the background joins them, so it can only come first; give ['affinity', ...]"


@check_arguments
def check_order(names: Sequence[RefinementName]) -> None:
    """Refuses "affinity" anywhere but first.

    Raises:
        ArgumentError: naming `refine`.
    """
    if "affinity" in names[1:]:
        raise ArgumentError("refine", list(names), f"'affinity': {_NOT_FIRST}")


@check_arguments
def refine_scores(
    scores: Tensor,
    picture: Tensor,
    names: Sequence[RefinementName],
    *,
    features: Tensor | None = None,
    rows: Tensor | None = None,
    proposals: Proposals | None = None,
    stride: int = 1,
) -> Tensor:
    """Refines the scores of one photograph by each named step in turn, with its default settings.

    The background goes through every step like a class. `pamr` and `random_walk` average, so a constant background
    stays as it is, which equals a threshold on the refined maps; a "power" background is refined itself. A photograph
    with a side above `MAX_SIDE` is refined at that size: PAMR would take gigabytes for 12 megapixels.

    "affinity" is none of these steps: it walks class maps before they have a background; `PseudoLabelGenerator` does
    it, by `walk_class_maps`.

    Args:
        scores: `(1 + K, H, W)` in `[0, 1]`, the background first.
        picture: `(3, H, W)` in `[0, 1]`, not normalised for a network.
        names: in the order in which the steps act; none gives the scores as they are.
        features: `(D, h, w)` of the photograph, for "random_walk".
        rows: `(hw, h, w)`, in their place the rows of the affinity of its cells; see `random_walk`.
        proposals: of the photograph, for "proposals"; None: `superpixels`.
        stride: the steps act on means over so many pixels along each side, and what they give is enlarged. The reach of
            "dense_crf" stays the same in pixels.

    Returns:
        `(1 + K, H, W)` float32.

    Raises:
        ArgumentError: for an unknown name or "affinity", scores or a picture that are not finite and in `[0, 1]` or
            not of one size, or "random_walk" without features.
        MissingExtraError: for "dense_crf" without the extra `crf`, or for "proposals" without any or the extra
            `superpixels`.
    """
    if not names:
        return scores.float()
    if "affinity" in names:
        raise ArgumentError("names", list(names), "these scores have a background; walk_class_maps walks without one")
    size = (scores.shape[1], scores.shape[2])
    [bounded] = view_sizes(size, scales=(1.0,), max_side=MAX_SIDE)
    bounded = (-(-bounded[0] // stride), -(-bounded[1] // stride))
    refined, images = scores[None].float(), picture[None]
    if bounded != size:
        refined, images = (F.interpolate(x, bounded, mode="bilinear", antialias=True) for x in (refined, images))
        refined, images = refined.clamp(0, 1), images.clamp(0, 1)
    for name in names:
        if name == "pamr":
            refined = pamr(refined, images)
        elif name == "dense_crf":
            refined = dense_crf(refined, images, smooth_reach=SMOOTH_REACH / stride, colour_reach=COLOUR_REACH / stride)
        elif name == "proposals":
            refined = _merge(refined, images, proposals, stride)
        elif rows is not None:
            refined = _walk(refined, rows[None], by_rows=True)
        elif features is None:
            raise ArgumentError("features", None, "'random_walk' needs the features of the photograph")
        else:
            refined = _walk(refined, features[None])
    return (F.interpolate(refined, size, mode="bilinear", align_corners=False) if bounded != size else refined)[0]


def _merge(scores: Tensor, images: Tensor, proposals: Proposals | None, stride: int) -> Tensor:
    """Merges scores over proposals, or over superpixels at their own size, as large in the photograph."""
    if proposals is None:
        proposals = superpixels(images[0], scale=SCALE / stride**2, least_pixels=max(1, LEAST_PIXELS // stride**2))
    return proposals.merge(scores[0])[None]


def _walk(scores: Tensor, features: Tensor, *, by_rows: bool = False) -> Tensor:
    """Random walk over the cells of the features; detail finer than a cell is lost."""
    size, cells = scores.shape[2:], features.shape[2:]
    if size == cells:
        return random_walk(scores, features, by_rows=by_rows)
    walked = random_walk(F.interpolate(scores, cells, mode="area"), features, by_rows=by_rows)
    return F.interpolate(walked, size, mode="bilinear", align_corners=False)
