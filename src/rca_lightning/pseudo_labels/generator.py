"""From the maps of a photograph to its pseudo label, in two halves: one on the device, one wherever there is time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import require_extra
from rca_lightning.pseudo_labels.labels import (
    BackgroundRule,
    BackgroundScore,
    check_images,
    check_rule,
    join_labels,
    label_scores,
    salient_pixels,
)
from rca_lightning.pseudo_labels.refinement import (
    Refinement,
    RefinementName,
    add_background,
    check_refinements,
    refinement_steps,
    run_steps,
)
from rca_lightning.rca.inference import MAX_SIDE, ClassMaps, view_sizes


@dataclass(frozen=True)
class IntermediateLabel:
    """What the second half works on; arrays, so that it can go to another process.

    Attributes:
        scores: one `(1 + K, H, W)` float32 for each background that the rule asks for.
        picture: `(3, H, W)` float32 in `[0, 1]`.
        classes: `(K,)` int64.
        salient: `(H, W)` bool; None unless the rule asks for it.
        steps: refinements that are still to be made.
        features: `(D, h, w)` float32; None unless these steps ask for them.
    """

    scores: list[npt.NDArray[np.float32]]
    picture: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    salient: npt.NDArray[np.bool_] | None
    steps: tuple[RefinementName, ...]
    features: npt.NDArray[np.float32] | None

    @property
    def evidence(self) -> Tensor:
        """What speaks for the background and each class so far, `(1 + K, H, W)`; with the higher background of two."""
        return torch.from_numpy(self.scores[-1])


@dataclass(frozen=True)
class PseudoLabelGenerator:
    """How pseudo labels are made of maps; see `label_map` for the rules and `refine` for the steps.

    Args:
        rule: where the background begins.
        threshold: of "fixed", in `[0, 1]`.
        power: of "power", above 0.
        low: of "two_thresholds" and "saliency", in `[0, high]`.
        high: of "two_thresholds" and "saliency", in `[low, 1]`.
        saliency_threshold: of "saliency", in `[0, 1]`.
        refine: refinements in the order in which they act.

    Raises:
        ArgumentError: for a value out of its range or an unknown refinement.
    """

    rule: BackgroundRule = "fixed"
    threshold: float = 0.2
    power: float = 8.0
    low: float = 0.05
    high: float = 0.3
    saliency_threshold: float = 0.5
    refine: tuple[RefinementName, ...] = ()

    def __post_init__(self) -> None:
        check_rule(
            self.rule,
            threshold=self.threshold,
            power=self.power,
            low=self.low,
            high=self.high,
            saliency_threshold=self.saliency_threshold,
        )
        check_refinements(self.refine, argument="refine")

    @property
    def needs_features(self) -> bool:
        """Whether `begin` needs the features of the network."""
        return "random_walk" in self.refine

    @property
    def is_slow(self) -> bool:
        """Whether `finish` has a refinement to make, on the CPU."""
        return bool(self._later())

    def describe(self) -> dict[str, Any]:
        """What labels depend on, as JSON values."""
        background: dict[str, float] = {
            "fixed": {"background_threshold": self.threshold},
            "power": {"power": self.power},
        }.get(self.rule, {"low": self.low, "high": self.high})
        if self.rule == "saliency":
            background["saliency_threshold"] = self.saliency_threshold
        return {"rule": self.rule, **background, "refine": list(self.refine)}

    def check_packages(self) -> None:
        """Refuse to begin without an optional package that a step needs.

        Raises:
            MissingExtraError: if it is not there.
        """
        if "dense_crf" in self.refine:
            require_extra("pydensecrf.densecrf", extra="crf", needed_for="refine=dense_crf")

    def begin(self, seeds: ClassMaps, picture: Tensor, saliency: Tensor | None = None) -> IntermediateLabel:
        """The steps before the first `dense_crf`, where the maps are.

        Args:
            seeds: maps of the photograph; with features for "random_walk".
            picture: `(3, H, W)` in `[0, 1]`.
            saliency: `(H, W)` in `[0, 1]`; for the rule "saliency".

        Raises:
            ArgumentError: for maps, features, pictures or saliency that do not fit; see `refine`.
        """
        maps = seeds.maps
        check_images(picture, maps, name="picture")
        salient = salient_pixels(saliency, maps, threshold=self.saliency_threshold) if self.rule == "saliency" else None
        later = self._later()
        steps = refinement_steps(self.refine, features=None if seeds.features is None else seeds.features[None])
        steps = steps[: len(steps) - len(later)]
        picture = picture.to(maps.device)
        stacks = []
        for background, threshold in self._backgrounds():
            scores = add_background(maps, rule=background, threshold=threshold, power=self.power)
            stacks.append(_array(_run_bounded(scores, picture, steps)))
        return IntermediateLabel(
            scores=stacks,
            picture=_array(picture),
            classes=seeds.classes.cpu().numpy(),
            salient=None if salient is None else salient.cpu().numpy(),
            steps=later,
            features=_array(seeds.features) if seeds.features is not None and "random_walk" in later else None,
        )

    def finish(self, made: IntermediateLabel) -> Tensor:
        """The other steps, on the CPU.

        Returns:
            The label image `(H, W)` uint8: 0 background, class + 1 its pixels, 255 undecided.
        """
        picture, classes = torch.from_numpy(made.picture), torch.from_numpy(made.classes)
        features = None if made.features is None else torch.from_numpy(made.features)[None]
        steps = refinement_steps(made.steps, features=features)
        refined = (_run_bounded(torch.from_numpy(scores), picture, steps) for scores in made.scores)
        labels = [label_scores(scores.clamp(0, 1), classes) for scores in refined]
        if self.rule == "fixed" or self.rule == "power":
            return labels[0]
        salient = None if made.salient is None else torch.from_numpy(made.salient)
        return join_labels(labels[0], labels[1], salient=salient)

    def _backgrounds(self) -> Sequence[tuple[BackgroundScore, float]]:
        if self.rule == "fixed" or self.rule == "power":
            return [(self.rule, self.threshold)]
        return [("fixed", self.low), ("fixed", self.high)]

    def _later(self) -> tuple[RefinementName, ...]:
        if "dense_crf" not in self.refine:
            return ()
        return self.refine[self.refine.index("dense_crf") :]


def _run_bounded(scores: Tensor, picture: Tensor, steps: Sequence[Refinement]) -> Tensor:
    """As `run_steps`, with sides of at most `MAX_SIDE`: PAMR would take gigabytes of a photograph of 12 megapixels."""
    size = (scores.shape[1], scores.shape[2])
    ((height, width),) = view_sizes(size, scales=(1.0,), max_side=MAX_SIDE)
    if not steps or (height, width) == size:
        return run_steps(scores, picture, steps)
    small, seen = (
        F.interpolate(x[None], (height, width), mode="bilinear", antialias=True)[0] for x in (scores, picture)
    )
    refined = run_steps(small.clamp(0, 1), seen.clamp(0, 1), steps)
    return F.interpolate(refined[None], size, mode="bilinear", align_corners=False)[0]


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().float().cpu().numpy())
