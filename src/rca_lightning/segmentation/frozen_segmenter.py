"""Frozen segmenter: labels of pixels from one frozen backbone, by a pixel classifier, predicted tags and boundaries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.backbones.base import enlarge_to_whole_cells
from rca_lightning.errors import ArgumentError
from rca_lightning.pseudo_labels.affinity import boundary_walk
from rca_lightning.rca.inference import MAX_SIDE, image_probabilities, multi_scale_flip, seen_tags
from rca_lightning.rca.network import RCANetwork
from rca_lightning.rca.projection import project
from rca_lightning.rca.propagation import propagate_by
from rca_lightning.rca.tag_calibration import TagCalibration
from rca_lightning.segmentation.boundary import BoundaryNetwork
from rca_lightning.segmentation.pixel_classifier import PixelClassifier
from rca_lightning.segmentation.pyramid import FeaturePyramid, PyramidReader

_LEVELS = 2  # of the pyramid that the classifier reads: the last two stages, as the embeddings of RCA
_LEAST_PROBABILITY = 1e-6  # of a predicted tag: its logarithm is added
_LEAST_WALKED = 0.05  # labels below it everywhere are not walked: the time grows with their number


class View(NamedTuple):
    """What the backbone sees of images at one scale: outputs `(B, C_k, h_k, w_k)` of the last stages.

    Relations of their cells are there where the first stage propagates by them.
    """

    outputs: list[Tensor]
    scale: float
    mirrored: bool
    relation: Tensor | None = None


class FrozenSegmenter(PyramidReader):
    """Reads labels from the stages of the backbone of a first stage, which nothing changes.

    Of each view of a photograph a `PixelClassifier` reads the two last levels of a feature pyramid; the logarithms of
    the image's probable tags are added, the probabilities propagated over like cells of the view, and averaged over the
    views. With a boundary network they are then walked up to the boundaries. These are equations (17) and (18) of
    docs/method.md.

    Args:
        first_stage: gives the backbone and the scores of tags.
        calibration: makes probabilities of these scores.
        tags_by_attention: whether prototypes have a say in them; see `infer_class_maps`.
        boundary: of the same backbone, which it shares from now on; `None`: no walk.

    Attributes:
        pyramid: that of the boundary network, else a new one whose components have to be learned.
        classifier: reads `embed(levels)`.
    """

    def __init__(
        self,
        first_stage: RCANetwork,
        calibration: TagCalibration,
        *,
        tags_by_attention: bool,
        boundary: BoundaryNetwork | None = None,
    ) -> None:
        super().__init__()
        self.first_stage = first_stage
        self.calibration = calibration
        self.tags_by_attention = tags_by_attention
        self.boundary_network = boundary
        self.pyramid = FeaturePyramid(first_stage.backbone) if boundary is None else boundary.pyramid
        self.pyramid.backbone = first_stage.backbone
        num_classes = first_stage.coarse_head.num_classes
        self.classifier = PixelClassifier(sum(self.pyramid.channels[-_LEVELS:]), num_classes + 1)
        self.requires_grad_(False)

    def embed(self, levels: Sequence[Tensor]) -> Tensor:
        """Joins the levels that are classified, `(B, D, h, w)` on the grid of the coarsest."""
        read = [level.to(self.classifier.weight.dtype) for level in levels[-_LEVELS:]]
        size = (read[-1].shape[2], read[-1].shape[3])
        same = [level if level.shape[2:] == size else F.adaptive_avg_pool2d(level, size) for level in read]
        return torch.cat(same, dim=1)

    @torch.no_grad()
    def label_probabilities(
        self,
        images: Tensor,
        tags: Tensor | None = None,
        *,
        scales: Sequence[float] = (1.0,),
        flip: bool = False,
        max_side: int = MAX_SIDE,
        propagation_steps: int = 1,
        propagation_power: float = 2.0,
    ) -> Tensor:
        """Computes the probabilities of every label.

        Args:
            images: `(B, 3, H, W)`, normalised.
            tags: `(B, L)`, above 0 for the classes that an image may show. In a row below 0, and with `None`, they are
                unknown, and the probabilities of predicted tags weigh the classes.
            scales: factors on the image size.
            flip: whether to add the mirrored image at every scale.
            max_side: longest side of a view in pixels; see `multi_scale_flip`.
            propagation_steps: how often the probabilities of a view are propagated; see `propagate`.
            propagation_power: see there.

        Returns:
            `(B, L + 1, h, w)` float32, summing to 1 in each cell but for labels that are not walked: on the grid of the
            boundaries, else on that of the largest view.
        """
        views = self.views(images, scales=scales, flip=flip, max_side=max_side)
        mean, boundary = self.unwalked(
            views, tags, propagation_steps=propagation_steps, propagation_power=propagation_power
        )
        return mean if boundary is None else walk_probabilities(mean, boundary)

    @torch.no_grad()
    def views(
        self, images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = False, max_side: int = MAX_SIDE
    ) -> list[View]:
        """Computes what the backbone sees of images `(B, 3, H, W)` at each scale, the largest first.

        Every segmenter behind the same backbone can read it.
        """
        every = multi_scale_flip(images, scales=sorted(scales, reverse=True), flip=flip, max_side=max_side)
        stride = max(self.strides)
        last = max(len(self.pyramid.stages), self.first_stage.embedding_stages)
        views = []
        for view, mirrored in every:
            outputs, relation = self.first_stage.outputs_and_relation(enlarge_to_whole_cells(view, stride), last)
            views.append(View(outputs, view.shape[2] / images.shape[2], mirrored, relation))
        return views

    @torch.no_grad()
    def unwalked(
        self, views: Sequence[View], tags: Tensor | None, *, propagation_steps: int, propagation_power: float
    ) -> tuple[Tensor, Tensor | None]:
        """Reads views: probabilities `(B, L + 1, h, w)` before the walk, and its boundary `(B, h', w')`, if any.

        Raises:
            ArgumentError: for no views.
        """
        if not views:
            raise ArgumentError("views", [], "give at least one")
        # Boundaries were learned, and the walk was tuned, on photographs at their own size.
        own = min(views, key=lambda view: (abs(view.scale - 1), view.mirrored))
        guesses = tags is None or bool((tags < 0).any())
        embeddings, seen = [], []
        boundary: Tensor | None = None
        for view in views:
            levels = project(self.projections, view.outputs[-len(self.pyramid.stages) :])
            embeddings.append(self.embed(levels))
            if guesses:
                stages = self.first_stage.stages_of(view.outputs)
                seen.append(seen_tags(self.first_stage, stages, self.tags_by_attention))
            if self.boundary_network is not None and view is own:
                boundary = self.boundary_network.read(levels)
        prior = tag_prior(image_probabilities(seen, self.calibration) if guesses else None, tags)[:, :, None, None]
        summed: Tensor | None = None
        for view, of_view in zip(views, embeddings, strict=True):
            probabilities = (self.classifier(of_view) + prior).softmax(dim=1)
            probabilities = propagate_by(
                self.first_stage.propagation_affinity,
                probabilities,
                of_view,
                view.relation,
                power=propagation_power,
                steps=propagation_steps,
            )
            probabilities = probabilities.flip(3) if view.mirrored else probabilities
            if summed is None:
                summed = probabilities
            else:
                summed += F.interpolate(probabilities, summed.shape[2:], mode="bilinear", align_corners=False)
        assert summed is not None
        return summed / len(views), boundary


def tag_prior(probabilities: Tensor | None, tags: Tensor | None) -> Tensor:
    """Logarithms `(B, L + 1)` of what is known of the labels of an image, 0 for the background.

    Args:
        probabilities: of tags `(B, L)`, which stand in where tags are unknown; `None`: no row is.
        tags: `(B, L)`, above 0 for the classes of an image, a row below 0 where they are unknown; `None`: all unknown.

    Example:
        >>> tag_prior(torch.tensor([[0.5, 1.0]]), None)
        tensor([[ 0.0000, -0.6931,  0.0000]])
    """
    guessed = None if probabilities is None else probabilities.clamp_min(_LEAST_PROBABILITY).log()
    if tags is None:
        assert guessed is not None
        return F.pad(guessed, (1, 0))
    given = torch.zeros_like(tags).masked_fill_(tags <= 0, -torch.inf)
    prior = given if guessed is None else torch.where((tags < 0).any(dim=1, keepdim=True), guessed, given)
    return F.pad(prior, (1, 0))


@torch.no_grad()
def walk_probabilities(probabilities: Tensor, boundary: Tensor) -> Tensor:
    """Walks the probabilities of labels up to boundaries; see `boundary_walk`.

    Args:
        probabilities: `(B, L + 1, h, w)`.
        boundary: `(B, h', w')`.

    Returns:
        `(B, L + 1, h', w')`, 0 for labels that are nowhere probable.
    """
    size = boundary.shape[1:]
    enlarged = F.interpolate(probabilities, size, mode="bilinear", align_corners=False)
    walked = torch.zeros_like(enlarged)
    for image, of_image in enumerate(enlarged):
        shown = of_image.amax(dim=(1, 2)) >= _LEAST_WALKED
        shown[of_image.mean(dim=(1, 2)).argmax()] = True
        walked[image, shown] = boundary_walk(of_image[None, shown].clamp(0, 1), boundary[image : image + 1])[0]
    return walked
