"""Refinements one after the other, the background competing with the classes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.dense_crf import dense_crf
from rca_lightning.pseudo_labels.labels import BackgroundScore, background_score, check_images, check_maps
from rca_lightning.pseudo_labels.propagation import pamr, random_walk

RefinementName = Literal["random_walk", "pamr", "dense_crf"]


class Refinement(Protocol):
    """One step: maps `(B, C, H, W)` and images `(B, 3, H, W)`, both in `[0, 1]`, to maps of the same shape.

    `pamr` and `dense_crf` are steps as they are, `functools.partial(pamr, iterations=5)` is one with other settings,
    and `FeatureWalk` is one made for a photograph.
    """

    def __call__(self, maps: Tensor, images: Tensor, /) -> Tensor:
        """The refined maps."""
        ...


class FeatureWalk:
    """`random_walk` as a step: maps are averaged to the cells of the features, walk, and are enlarged again.

    Detail finer than a cell is lost, so it stands before steps that look at colours.

    Args:
        features: `(B, D, h, w)` of the photographs the step is for.
        radius: see `random_walk`.
        beta: see `random_walk`.
        steps: see `random_walk`.
    """

    def __init__(self, features: Tensor, *, radius: float = 5.0, beta: float = 8.0, steps: int = 16) -> None:
        self.features = features
        self.radius = radius
        self.beta = beta
        self.steps = steps

    def __call__(self, maps: Tensor, images: Tensor) -> Tensor:
        """The maps after the walk."""
        cells = self.features.shape[2:]
        coarse = maps.float() if maps.shape[2:] == cells else F.interpolate(maps.float(), cells, mode="area")
        walked = random_walk(coarse, self.features, radius=self.radius, beta=self.beta, steps=self.steps)
        if maps.shape[2:] == cells:
            return walked
        return F.interpolate(walked, maps.shape[2:], mode="bilinear", align_corners=False)


def refinement_steps(names: Sequence[RefinementName], *, features: Tensor | None = None) -> list[Refinement]:
    """Steps by name, with their default settings.

    Args:
        names: in the order in which they act.
        features: `(1, D, h, w)` of the photograph; needed by "random_walk" alone.

    Raises:
        ArgumentError: for an unknown name, or "random_walk" without features.
    """
    check_refinements(names, argument="names")
    steps: list[Refinement] = []
    for name in names:
        if name == "pamr":
            steps.append(pamr)
        elif name == "dense_crf":
            steps.append(dense_crf)
        elif features is None:
            raise ArgumentError("features", None, "'random_walk' needs the features of the photograph")
        else:
            steps.append(FeatureWalk(features))
    return steps


def check_refinements(names: Sequence[str], *, argument: str) -> None:
    """Refuse a name that is none of a refinement, in an argument of this name."""
    for name in names:
        if name not in get_args(RefinementName):
            raise ArgumentError(argument, name, "give 'random_walk', 'pamr' or 'dense_crf'")


def refine(
    maps: Tensor,
    image: Tensor,
    *,
    steps: Sequence[Refinement],
    background: BackgroundScore = "fixed",
    threshold: float = 0.2,
    power: float = 8.0,
) -> Tensor:
    """Refine the maps of one photograph together with a score of the background.

    The background becomes the first channel and goes through every step like a class. Under `pamr` and `random_walk`,
    which average, a "fixed" background stays what it is: this is the threshold applied to the refined maps. A "power"
    background is refined itself. `label_scores` makes the label image of the result.

    Args:
        maps: `(K, H, W)` in `[0, 1]`; K may be 0.
        image: `(3, H, W)` in `[0, 1]`, not normalised for a network.
        steps: in the order in which they act; none gives the scores as they are.
        background: see `background_score`.
        threshold: of "fixed", in `[0, 1]`.
        power: of "power", above 0.

    Returns:
        `(1 + K, H, W)` float32 in `[0, 1]`: background, then the maps in their order.

    Raises:
        ArgumentError: for a value out of its range, maps or an image that are not finite and in `[0, 1]` or not of one
            size, or a step that changes the shape.
        MissingExtraError: if a step needs an optional package.

    Example:
        >>> image = torch.tensor([0.0, 0.0, 1.0, 1.0]).expand(3, 4, 4)
        >>> maps = torch.tensor([0.9, 0.15, 0.1, 0.0]).expand(1, 4, 4)
        >>> scores = refine(maps, image, steps=[pamr], threshold=0.3)
        >>> (scores[1] > scores[0])[0].tolist()
        [True, True, False, False]
    """
    check_images(image, maps, name="image")
    return run_steps(add_background(maps, rule=background, threshold=threshold, power=power), image, steps)


def add_background(maps: Tensor, *, rule: BackgroundScore, threshold: float, power: float) -> Tensor:
    """The maps `(K, H, W)` of a photograph behind a score of the background: `(1 + K, H, W)` float32."""
    check_maps(maps)
    score = background_score(maps, rule=rule, threshold=threshold, power=power)
    return torch.cat([score[None], maps]).float()


def run_steps(scores: Tensor, image: Tensor, steps: Sequence[Refinement]) -> Tensor:
    """Scores `(1 + K, H, W)` of the photograph `(3, H, W)` after all steps.

    Raises:
        ArgumentError: for a step that changes the shape, and for what a step refuses.
    """
    for step in steps:
        refined = step(scores[None], image[None])[0]
        if refined.shape != scores.shape:
            remedy = f"a step must give back the shape {tuple(scores.shape)}, this one gave {tuple(refined.shape)}"
            raise ArgumentError("steps", step, remedy)
        scores = refined
    return scores
