"""From the maps of a photograph to its pseudo label, in two halves: one on the device, one wherever there is time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError, require_extra
from rca_lightning.pseudo_labels.background import BackgroundScore
from rca_lightning.pseudo_labels.inputs import check_positive, check_share
from rca_lightning.pseudo_labels.label_map import BackgroundRule, join_labels, label_scores
from rca_lightning.pseudo_labels.multiscale import Seeds
from rca_lightning.pseudo_labels.refinement import RefinementName, add_background, refinement_steps, run_steps


@dataclass(frozen=True)
class HalfMade:
    """What the second half works on; arrays, so that it can go to another process.

    Attributes:
        scores: one `(1 + K, H, W)` float32 for each background that the rule asks for.
        picture: `(3, H, W)` float32 in `[0, 1]`.
        classes: `(K,)` int64.
        saliency: `(H, W)` float32, or None.
        steps: refinements that are still to be made.
    """

    scores: list[npt.NDArray[np.float32]]
    picture: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    saliency: npt.NDArray[np.float32] | None
    steps: tuple[RefinementName, ...]


@dataclass(frozen=True)
class LabelMaker:
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
        for name in ("threshold", "low", "high", "saliency_threshold"):
            check_share(name, getattr(self, name))
        check_positive("power", self.power)
        if self.low > self.high:
            raise ArgumentError("low", self.low, f"give at most high={self.high}")
        if self.rule not in {"fixed", "power", "saliency", "two_thresholds"}:
            raise ArgumentError("rule", self.rule, "give 'fixed', 'power', 'saliency' or 'two_thresholds'")
        refinement_steps(self.refine, features=torch.zeros(1, 1, 1, 1))

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

    def begin(self, seeds: Seeds, picture: Tensor, saliency: Tensor | None = None) -> HalfMade:
        """The steps before the first `dense_crf`, where the maps are.

        Args:
            seeds: maps of the photograph; with features for "random_walk".
            picture: `(3, H, W)` in `[0, 1]`.
            saliency: `(H, W)` in `[0, 1]`; for the rule "saliency".

        Raises:
            ArgumentError: for maps, features, pictures or saliency that do not fit; see `refine`.
        """
        if self.rule == "saliency" and saliency is None:
            raise ArgumentError("saliency", None, "rule='saliency' needs a saliency map (H, W) of the photograph")
        features = None if seeds.features is None else seeds.features[None]
        later = self._later()
        steps = refinement_steps(self.refine[: len(self.refine) - len(later)], features=features)
        picture = picture.to(seeds.maps.device)
        stacks = []
        for background, threshold in self._backgrounds():
            scores = add_background(seeds.maps, rule=background, threshold=threshold, power=self.power)
            stacks.append(_array(run_steps(scores, picture, steps)))
        return HalfMade(
            scores=stacks,
            picture=_array(picture),
            classes=seeds.classes.cpu().numpy(),
            saliency=None if saliency is None or self.rule != "saliency" else _array(saliency),
            steps=later,
        )

    def finish(self, made: HalfMade) -> tuple[Tensor, Tensor]:
        """The other steps, on the CPU.

        Returns:
            The label image `(H, W)` uint8: 0 background, class + 1 its pixels, 255 undecided; and the refined scores
            `(1 + K, H, W)` of the background and the classes.
        """
        picture, classes = torch.from_numpy(made.picture), torch.from_numpy(made.classes)
        steps = refinement_steps(made.steps)
        refined = [run_steps(torch.from_numpy(scores), picture, steps) for scores in made.scores]
        labels = [label_scores(scores.clamp(0, 1), classes) for scores in refined]
        if self.rule == "fixed" or self.rule == "power":
            return labels[0], refined[0]
        saliency = None if made.saliency is None else torch.from_numpy(made.saliency) > self.saliency_threshold
        return join_labels(labels[0], labels[1], salient=saliency), refined[1]

    def _backgrounds(self) -> Sequence[tuple[BackgroundScore, float]]:
        if self.rule == "fixed" or self.rule == "power":
            return [(self.rule, self.threshold)]
        return [("fixed", self.low), ("fixed", self.high)]

    def _later(self) -> tuple[RefinementName, ...]:
        if "dense_crf" not in self.refine:
            return ()
        return self.refine[self.refine.index("dense_crf") :]


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().float().cpu().numpy())
