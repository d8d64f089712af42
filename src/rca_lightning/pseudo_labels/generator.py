"""Pseudo label of a photograph in two halves: scores on the device, then the slow steps on any CPU."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError, require_extra
from rca_lightning.pseudo_labels.affinity import walk_class_maps
from rca_lightning.pseudo_labels.labels import (
    BACKGROUND_SETTINGS,
    Background,
    background_score,
    check_count,
    check_images,
    check_positive,
    check_share,
    join_labels,
    label_scores,
    salient_pixels,
)
from rca_lightning.pseudo_labels.proposals import read_proposals
from rca_lightning.pseudo_labels.refinement import RefinementName, check_order, refine_scores
from rca_lightning.rca.inference import ClassMaps

_ON_CPU: tuple[RefinementName, ...] = ("dense_crf", "proposals")  # from the first of them on a worker refines
Proposer = Literal["superpixels", "files"]


@dataclass(frozen=True)
class IntermediateLabel:
    """Scores of a photograph before the slow refinements; arrays, so that it can go to another process.

    Attributes:
        scores: `(1 + K, H, W)` float32 with the background first; two of them, with the low and with the high
            threshold, for the backgrounds "two_thresholds" and "saliency".
        picture: `(3, H, W)` float32 in `[0, 1]`.
        classes: `(K,)` int64.
        salient: `(H, W)` bool; None unless the background is "saliency".
        steps: refinements that are still to be made.
        features: `(D, h, w)` float32; None unless these steps need them.
        rows: `(hw, h, w)` float32, in their place the rows of an affinity; see `ClassMaps`.
        proposals: file for the step "proposals"; None: superpixels of the picture.
    """

    scores: list[npt.NDArray[np.float32]]
    picture: npt.NDArray[np.float32]
    classes: npt.NDArray[np.int64]
    salient: npt.NDArray[np.bool_] | None
    steps: tuple[RefinementName, ...]
    features: npt.NDArray[np.float32] | None
    rows: npt.NDArray[np.float32] | None = None
    proposals: Path | None = None

    @property
    def evidence(self) -> Tensor:
        """Scores `(1 + K, H, W)` from which the confidence is computed: those with the higher background."""
        return torch.from_numpy(self.scores[-1])


@check_arguments
@dataclass(frozen=True)
class PseudoLabelGenerator:
    """Generates pseudo labels from class maps. With `m` the strongest map of a pixel, before refinement:

    - "fixed": its class where `m > background_threshold`, else background.
    - "power": its class where `m > (1 - m)^power`, else background; see `background_score`.
    - "two_thresholds": its class where `m > high`, background where `m <= low`, ignored (255) between.
    - "saliency": where the saliency is above `saliency_threshold` its class if `m > low`, else ignored; elsewhere
      background, but ignored if `m > high`.

    Args:
        background: see above.
        background_threshold: of "fixed", in `[0, 1]`.
        power: of "power", above 0.
        low: of "two_thresholds" and "saliency", in `[0, high]`.
        high: of "two_thresholds" and "saliency", in `[low, 1]`.
        saliency_threshold: of "saliency", in `[0, 1]`.
        refine: refinements in the order in which they act; see `refine_scores`. "affinity" can only come first: it
            walks the class maps themselves, before the background joins them.
        refine_stride: pixels along each side that the others act on the mean of, for labels that are learned from on a
            coarser grid: a "dense_crf" at 4 takes a fraction of the time.
        proposer: of "proposals": "superpixels" of the photograph, or the "files" that `score` is given.

    Raises:
        ArgumentError: for a value out of its range, an unknown refinement, or "affinity" after another.
    """

    background: Background = "fixed"
    background_threshold: float = 0.2
    power: float = 8.0
    low: float = 0.05
    high: float = 0.3
    saliency_threshold: float = 0.5
    refine: tuple[RefinementName, ...] = ()
    refine_stride: int = 1
    proposer: Proposer = "superpixels"

    def __post_init__(self) -> None:
        for name in ("background_threshold", "low", "high", "saliency_threshold"):
            check_share(name, getattr(self, name))
        check_positive("power", self.power)
        check_order(self.refine)
        check_count("refine_stride", self.refine_stride, least=1)
        if self.low > self.high and self.background in {"saliency", "two_thresholds"}:
            raise ArgumentError("low", self.low, f"give at most high={self.high}")

    @property
    def needs_features(self) -> bool:
        """Whether `score` needs the features of the network."""
        return "random_walk" in self.refine

    @property
    def needs_boundary(self) -> bool:
        """Whether `score` needs the boundary map of an `AffinityModule`."""
        return "affinity" in self.refine

    @property
    def has_crf(self) -> bool:
        """Whether the dense CRF refines the labels."""
        return "dense_crf" in self.refine

    @property
    def is_slow(self) -> bool:
        """Whether `draw` has a refinement to make, on the CPU."""
        return not set(_ON_CPU).isdisjoint(self.refine)

    def describe(self) -> dict[str, Any]:
        """The settings that the labels depend on, as JSON values."""
        settings = {name: getattr(self, name) for name in BACKGROUND_SETTINGS[self.background]}
        # Only where it is another than it always was: folders that were made before it was known stay in use.
        coarse = {"refine_stride": self.refine_stride} if self.refine_stride > 1 else {}
        return {"background": self.background, **settings, "refine": list(self.refine), **coarse}

    def check_packages(self) -> None:
        """Raises `MissingExtraError` if a refinement needs an optional package that is not there."""
        if "dense_crf" in self.refine:
            require_extra("pydensecrf.densecrf", extra="crf", needed_for="refine=dense_crf")
        if "proposals" in self.refine and self.proposer == "superpixels":
            require_extra("skimage.segmentation", extra="superpixels", needed_for="refine=proposals without a folder")

    def score(
        self,
        maps: ClassMaps,
        picture: Tensor,
        saliency: Tensor | None = None,
        *,
        boundary: Tensor | None = None,
        proposals: Path | None = None,
    ) -> IntermediateLabel:
        """Scores background and classes at each pixel, with the refinements before the first that runs on the CPU.

        Args:
            maps: class maps of the photograph; with features for "random_walk".
            picture: `(3, H, W)` in `[0, 1]`.
            saliency: `(H, W)` in `[0, 1]`; for the background "saliency".
            boundary: `(h, w)` in `[0, 1]`, boundary map of the photograph; for "affinity".
            proposals: file of the photograph, for the proposer "files"; without one that step is left out.

        Raises:
            ArgumentError: for maps, features, a picture, saliency or a boundary that do not fit.
        """
        check_images(picture, maps.maps, name="picture")
        if self.needs_features and maps.features is None and maps.rows is None:
            raise ArgumentError("features", None, "'random_walk' needs the features of the photograph")
        salient = None
        if self.background == "saliency":
            salient = salient_pixels(saliency, maps.maps, threshold=self.saliency_threshold).cpu().numpy()
        steps = self.refine
        if self.needs_boundary:
            if boundary is None:
                raise ArgumentError("boundary", None, "'affinity' needs the boundary map of the photograph")
            maps, steps = replace(maps, maps=walk_class_maps(maps.maps, boundary)), steps[1:]
        if self.proposer == "files" and proposals is None:
            steps = tuple(name for name in steps if name != "proposals")
        count = next((place for place, name in enumerate(steps) if name in _ON_CPU), len(steps))
        now, later = steps[:count], steps[count:]
        picture = picture.to(maps.maps.device)
        features, rows = (maps.features, maps.rows) if "random_walk" in later else (None, None)
        return IntermediateLabel(
            scores=[
                _array(
                    refine_scores(x, picture, now, features=maps.features, rows=maps.rows, stride=self.refine_stride)
                )
                for x in self._add_background(maps)
            ],
            picture=_array(picture),
            classes=maps.classes.cpu().numpy(),
            salient=salient,
            steps=later,
            features=None if features is None else _array(features),
            rows=None if rows is None else _array(rows),
            proposals=proposals if self.proposer == "files" else None,
        )

    def draw(self, intermediate: IntermediateLabel) -> Tensor:
        """Makes the remaining refinements, on the CPU, and draws the label image.

        Returns:
            `(H, W)` uint8: 0 background, class + 1 its pixels, 255 undecided.

        Raises:
            DataError: for a file of proposals that cannot be used.
        """
        picture, classes = torch.from_numpy(intermediate.picture), torch.from_numpy(intermediate.classes)
        features = None if intermediate.features is None else torch.from_numpy(intermediate.features)
        rows = None if intermediate.rows is None else torch.from_numpy(intermediate.rows)
        proposals = None
        if intermediate.proposals is not None:
            proposals = read_proposals(intermediate.proposals, size=(picture.shape[1], picture.shape[2]))
        labels = []
        for scores in intermediate.scores:
            refined = refine_scores(
                torch.from_numpy(scores),
                picture,
                intermediate.steps,
                features=features,
                rows=rows,
                proposals=proposals,
                stride=self.refine_stride,
            )
            labels.append(label_scores(refined.clamp(0, 1), classes))
        if len(labels) == 1:
            return labels[0]
        salient = None if intermediate.salient is None else torch.from_numpy(intermediate.salient)
        return join_labels(labels[0], labels[1], salient=salient)

    def _add_background(self, maps: ClassMaps) -> list[Tensor]:
        """The maps behind a background score, `(1 + K, H, W)`: one, or one with `low` and one with `high`."""
        if self.background == "power":
            backgrounds = [background_score(maps.maps, background="power", power=self.power)]
        else:
            thresholds = [self.background_threshold] if self.background == "fixed" else [self.low, self.high]
            backgrounds = [background_score(maps.maps, threshold=threshold) for threshold in thresholds]
        return [torch.cat([score[None], maps.maps]) for score in backgrounds]


def _array(values: Tensor) -> npt.NDArray[np.float32]:
    return np.ascontiguousarray(values.detach().float().cpu().numpy())
