"""Class maps at the size of the photograph, averaged over scales and flips."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.cam import image_logits, max_normalise, predicted_classes
from rca_lightning.rca.network import FinalMap, RCANetwork
from rca_lightning.rca.propagation import mirror_rows
from rca_lightning.rca.tag_calibration import TagCalibration, mean_probability

logger = logging.getLogger(__name__)

MAX_SIDE = 1280
"""Longest side of a view in pixels unless said otherwise: VOC and COCO photographs reach it at twice their size."""

_LEAST_SIDE = 16  # the smallest crop of training; on less a network with stride 16 sees a single cell
_capped: set[tuple[int, int, int]] = set()  # sizes that were logged already


def check_views(scales: Sequence[float], max_side: int) -> None:
    """Refuse scales and a cap of which no view can be made.

    Raises:
        ArgumentError: no scale, one that is not above 0 and finite, or a side below 16 pixels.
    """
    if not scales or not all(0 < scale < float("inf") for scale in scales):
        raise ArgumentError("scales", scales, "give at least one number above 0, such as 0.5 1.0 1.5")
    if max_side < _LEAST_SIDE:
        raise ArgumentError("max_side", max_side, f"give {_LEAST_SIDE} pixels or more")


def multi_scale_flip(
    images: Tensor, *, scales: Sequence[float] = (1.0,), flip: bool = True, max_side: int = MAX_SIDE
) -> Iterator[tuple[Tensor, bool]]:
    """Scaled images, each as it is and mirrored, one view at a time.

    A view whose longer side would exceed `max_side` is made with that side instead, which bounds the memory of a large
    photograph; two scales that both exceed it are one view then. It is logged once for each size of photograph.

    Args:
        images: `(B, 3, H, W)`, normalised.
        scales: factors on the size of the images.
        flip: whether to add the mirrored image at every scale.
        max_side: longest side of a view in pixels, 16 or more.

    Yields:
        `(B, 3, h, w)`, and whether it is mirrored.

    Raises:
        ArgumentError: see `check_views`.

    Example:
        >>> import torch
        >>> views = multi_scale_flip(torch.zeros(1, 3, 40, 60), scales=(0.5, 1.0), flip=False)
        >>> [tuple(view.shape[2:]) for view, _ in views]
        [(20, 30), (40, 60)]
    """
    check_views(scales, max_side)
    for height, width in view_sizes((images.shape[2], images.shape[3]), scales=scales, max_side=max_side):
        same = (height, width) == tuple(images.shape[2:])
        smaller = height < images.shape[2]
        scaled = images if same else F.interpolate(images, (height, width), mode="bilinear", antialias=smaller)
        yield scaled, False
        if flip:
            yield scaled.flip(3), True


def view_sizes(size: tuple[int, int], *, scales: Sequence[float], max_side: int = MAX_SIDE) -> list[tuple[int, int]]:
    """Height and width of each view of a photograph of this height and width, each size once."""
    longest = max(size)
    largest = max_side / longest
    kept = dict.fromkeys(min(scale, largest) for scale in scales)
    if largest < max(scales) and (key := (*size, max_side)) not in _capped:
        _capped.add(key)
        logger.warning(
            "photographs of %d x %d pixels: scales above %.3g are computed at that scale, as max_side=%d bounds memory",
            size[1],
            size[0],
            largest,
            max_side,
        )
    sizes = [(max(1, round(size[0] * scale)), max(1, round(size[1] * scale))) for scale in kept]
    return list(dict.fromkeys(sizes))


@dataclass
class ClassMaps:
    """Class maps of one photograph, of the classes that may occur in it.

    Attributes:
        maps: `(K, H, W)` float32 in `[0, 1]`, each with maximum 1 or all 0.
        classes: `(K,)` int64, class of each map, ascending.
        probabilities: `(L,)`, image probability of every class.
        features: `(D, h, w)`, embeddings of the largest view, for `random_walk`, or the keys of a transformer where
            propagation is by them; `None` unless requested.
        rows: `(hw, h, w)`, in their place the rows of the affinity of its cells, where propagation is by attention.
    """

    maps: Tensor
    classes: Tensor
    probabilities: Tensor
    features: Tensor | None = None
    rows: Tensor | None = None


@torch.no_grad()
@check_arguments
def infer_class_maps(
    network: RCANetwork,
    images: Tensor,
    tags: Tensor | None = None,
    *,
    final_map: FinalMap = "attention",
    scales: Sequence[float] = (1.0,),
    flip: bool = True,
    tag_threshold: float | Tensor = 0.5,
    calibration: TagCalibration | None = None,
    max_side: int = MAX_SIDE,
    keep_features: bool = False,
    propagation_steps: int = 0,
    propagation_power: float = 2.0,
    tags_by_attention: bool = False,
) -> list[ClassMaps]:
    """Computes the class maps of whole images: `read_class_maps` of the features of all scales and flips.

    The classes of an image without tags are decided once, from the mean over all views. The maps of all
    scales and flips are read with the classes of the image, averaged and then normalised, so a view in which a class is
    hardly seen counts little.

    Args:
        network: in evaluation mode.
        images: `(B, 3, H, W)`, normalised.
        tags: `(B, L)`: 1 for the classes to keep and 0 for others; a row of 0 has no class. In a row below 0, and with
            `None`, the tags are unknown, and the classes with an image probability above `tag_threshold` are kept, or
            the most probable one.
        final_map: which map is read; see `ActivationMaps.final_cam`.
        scales: factors on the image size.
        flip: whether to add the mirrored image at every scale.
        tag_threshold: in `[0, 1]`, also `(L,)`, one a class.
        calibration: gives the image probabilities; `None`: that of a network which was not calibrated.
        max_side: longest side of a view in pixels; see `multi_scale_flip`.
        keep_features: whether to give the embeddings of the largest view as well, averaged with its mirror image.
        propagation_steps: how often the map of each view is propagated inside it; see `propagate`.
        propagation_power: see `propagate`.
        tags_by_attention: whether the image probability of a class rests on two: that of the first CAM head, and the
            attention of its strongest cells where a pixel reads the prototypes of all classes; see `TagCalibration` and
            `RCANetwork.class_evidence`. Right where contrast has trained the prototypes to tell all classes apart.

    Returns:
        One `ClassMaps` for each image.

    Raises:
        ArgumentError: for scales or a side of which no view can be made.
    """
    views = multi_scale_flip(images, scales=sorted(scales, reverse=True), flip=flip, max_side=max_side)
    return read_class_maps(
        network,
        ((network.stages(view), mirrored) for view, mirrored in views),
        tags,
        size=(images.shape[2], images.shape[3]),
        final_map=final_map,
        tag_threshold=tag_threshold,
        calibration=calibration,
        keep_features=keep_features,
        propagation_steps=propagation_steps,
        propagation_power=propagation_power,
        tags_by_attention=tags_by_attention,
    )


@torch.no_grad()
@check_arguments
def read_class_maps(
    network: RCANetwork,
    views: Iterable[tuple[list[Tensor], bool]],
    tags: Tensor | None = None,
    *,
    size: tuple[int, int],
    final_map: FinalMap = "attention",
    tag_threshold: float | Tensor = 0.5,
    calibration: TagCalibration | None = None,
    keep_features: bool = False,
    propagation_steps: int = 0,
    propagation_power: float = 2.0,
    tags_by_attention: bool = False,
) -> list[ClassMaps]:
    """Reads the class maps of B images from features that were computed before.

    Args:
        network: in evaluation mode.
        views: of each scale and flip the outputs `(B, C, h, w)` of `network.stages`, and whether it is mirrored; the
            largest first: all others are averaged on its cells.
        tags: `(B, L)`; see `infer_class_maps`, as for the other arguments.
        size: height and width of the images, and of the maps.
        final_map: see there.
        tag_threshold: see there.
        calibration: see there.
        keep_features: see there.
        propagation_steps: see there.
        propagation_power: see there.
        tags_by_attention: see there.
    """
    stages: Iterable[tuple[list[Tensor], bool]] = views
    classes = None if tags is None or bool((tags < 0).any()) else tags > 0
    probabilities: Tensor | None = None
    if classes is None:
        # Kept, as each view is read with the classes that all views decide.
        kept_views = list(views)
        seen = [seen_tags(network, of_view, tags_by_attention) for of_view, _ in kept_views]
        probabilities = image_probabilities(seen, calibration)
        classes = predicted_classes(probabilities, tag_threshold)
        if tags is not None:
            classes = torch.where((tags < 0).any(dim=1, keepdim=True), classes, tags > 0)
        stages = kept_views
    summed: Tensor | None = None
    number, seen, by_rows = 0, [], False
    features: list[Tensor] = []
    shown = torch.nonzero(classes.any(dim=0))[:, 0]  # of any image
    for of_view, mirrored in stages:
        output = network.read(of_view, classes)
        cam = output.final_cam(final_map)[:, shown]
        cam = output.propagate(cam, power=propagation_power, steps=propagation_steps)
        cam = _unmirrored(cam, mirrored)
        number += 1
        if probabilities is None:
            seen.append(seen_tags(network, of_view, tags_by_attention, image_logits(output.coarse)))
        kept_map = output.embeddings if output.relation is None else output.relation
        if keep_features and (not features or features[0].shape == kept_map.shape):
            by_rows = output.propagation_affinity == "attention"
            flipped = mirror_rows(kept_map) if mirrored and by_rows else _unmirrored(kept_map, mirrored)
            features.append(flipped.float())
        summed = cam if summed is None else summed + _resize(cam, summed.shape[2:])
    assert summed is not None  # there is at least one scale
    probabilities = image_probabilities(seen, calibration) if probabilities is None else probabilities
    class_maps = []
    for index, of_image in enumerate(classes):
        keep = torch.nonzero(of_image)[:, 0]
        # Only kept classes are enlarged: 80 maps of a photograph would take 100 MB.
        mean = summed[index : index + 1, of_image[shown]] / number
        enlarged = _resize(mean, size)[0] if len(keep) else mean.new_zeros(0, *size)
        averaged = torch.stack([of_view[index] for of_view in features]).mean(0) if features else None
        kept = {"rows" if by_rows else "features": averaged}
        class_maps.append(ClassMaps(max_normalise(enlarged), keep, probabilities[index], **kept))
    return class_maps


def seen_tags(
    network: RCANetwork, of_view: list[Tensor], by_attention: bool, logits: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """Image logits `(B, L)` of a view, and the evidence of its attention if it is asked for; see `class_evidence`.

    Args:
        network: in evaluation mode.
        of_view: what `network.stages` returns of the view.
        by_attention: whether the evidence is asked for.
        logits: of the first CAM head where they are known.
    """
    logits = image_logits(network.coarse_head(network.split(of_view)[0][-1])) if logits is None else logits
    return logits, network.class_evidence(of_view) if by_attention else None


def image_probabilities(seen: Sequence[tuple[Tensor, Tensor | None]], calibration: TagCalibration | None) -> Tensor:
    """Probability `(B, L)` of each class from what `seen_tags` found in each view: equation (12) of docs/method.md."""
    logits = torch.stack([of_view for of_view, _ in seen]).mean(0)
    shown = [of_view for _, of_view in seen if of_view is not None]
    evidence = torch.stack(shown).mean(0) if shown else None
    probabilities: Tensor = mean_probability(logits, evidence) if calibration is None else calibration(logits, evidence)
    return probabilities


def _unmirrored(maps: Tensor, mirrored: bool) -> Tensor:
    return maps.flip(3) if mirrored else maps


def _resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(maps.shape[2:]) == tuple(size):
        return maps
    if not maps.shape[1]:
        return maps.new_empty(len(maps), 0, *size)  # of photographs without a class; torch refuses to enlarge nothing
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
