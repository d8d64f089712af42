"""Samples (one image), batches, and the collation of one to the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict

import torch
from torch import Tensor

from rca_lightning.constants import UNKNOWN_TAG

if TYPE_CHECKING:
    from typing_extensions import Required


class SkippedImage(NamedTuple):
    """An image that was skipped because it, its mask or its saliency map could not be read."""

    split: str
    image_id: str
    reason: str  # the error


class Sample(TypedDict, total=False):
    """One image with L foreground classes.

    Attributes:
        image: (3, H, W) float32, RGB, normalised by the ImageNet mean and standard deviation.
        tags: (L,) float32, 1 for each class in the image, else 0; index c means mask value c + 1. All -1 if the tags
            are unknown, which happens in prediction only; all 0 if the image shows none of the classes.
        image_id: name of the image file without its ending.
        original_size: (2,) int64, height and width of the upright photograph.
        mask: (H, W) int64: 0 background, 1..L classes, 255 void. Missing without a mask.
        saliency: (H, W) float32 in [0, 1]. Missing without a saliency map.
        window: (2, 3) float32, an affine map of (x, y, 1) in pixels of `image` to (x, y) in pixels of the upright
            photograph, scale, padding, crop and flip undone. In both, x = 0 is the left edge of the first pixel and
            0.5 its centre. Where `image` is padding it points outside the photograph. Missing outside training,
            where `image` is the photograph.
        features: of each scale (V, D, h, w) float16 from a `FeatureCache`, of the photograph and, where V is 2, of its
            mirror image; where the cache has several levels, of each scale the list of them. Missing without a cache.
            In the training of a frozen backbone they take the place of `image` and `original_size`; a crop has of each
            level (D_k, h_k, w_k).
        unread: images that were skipped before this one was read instead. Missing if there was none.
    """

    image: Tensor
    tags: Required[Tensor]
    image_id: Required[str]
    original_size: Tensor
    features: list[Any]
    mask: Tensor
    saliency: Tensor
    window: Tensor
    unread: list[SkippedImage]


class Batch(TypedDict, total=False):
    """B samples of equal height and width; B is 0 where no image of a batch could be read and `on_bad_image` is "skip".

    Attributes:
        image: (B, 3, H, W) float32.
        tags: (B, L) float32: 1 present, 0 absent, -1 unknown.
        image_id: B names.
        original_size: (B, 2) int64.
        mask: (B, H, W) int64; only if every sample has one.
        masks: B masks (H, W) int64, in the place of `mask` where features of whole photographs are trained on.
        saliency: (B, H, W) float32; only if every sample has one.
        window: (B, 2, 3) float32; only if every sample has one.
        features: of each image those of its sample; only if every sample has them. Of crops: of each level
            (B, D_k, h_k, w_k) float16.
        unread: images that were skipped, if any; `WSSSDataModule` takes them out before a batch reaches a module.
        seeds: of each image `Seeds` or None, which `RegionMemoryCallback` adds where regions are cut from them.
    """

    image: Tensor
    tags: Required[Tensor]
    image_id: Required[list[str]]
    original_size: Tensor
    features: list[Any]
    mask: Tensor
    masks: list[Tensor]
    saliency: Tensor
    window: Tensor
    unread: list[SkippedImage]
    seeds: list[Any]


def collate(samples: Sequence[Sample]) -> Batch:
    """Stack samples of one height and width to a batch.

    A mask, saliency map or window that some samples lack is left out for all, so that its rows are those of `image`.

    Example:
        >>> one = Sample(image=torch.zeros(3, 2, 2), tags=torch.zeros(1), image_id="a",
        ...              original_size=torch.tensor([2, 2]))
        >>> tuple(collate([one, one])["image"].shape)
        (2, 3, 2, 2)
    """
    batch = Batch(
        image=torch.stack([sample["image"] for sample in samples]),
        tags=torch.stack([sample["tags"] for sample in samples]),
        image_id=[sample["image_id"] for sample in samples],
        original_size=torch.stack([sample["original_size"] for sample in samples]),
    )
    optional: tuple[Literal["mask", "saliency", "window"], ...] = ("mask", "saliency", "window")
    for name in optional:
        if all(name in sample for sample in samples):
            batch[name] = torch.stack([sample[name] for sample in samples])
    if all("features" in sample for sample in samples):
        batch["features"] = [sample["features"] for sample in samples]
    unread = [image for sample in samples for image in sample.get("unread", ())]
    if unread:
        batch["unread"] = unread
    return batch


def collate_features(samples: Sequence[Sample]) -> Batch:
    """Lists the features of samples, whose photographs may have any size, and their masks if all have one."""
    batch = Batch(
        tags=torch.stack([sample["tags"] for sample in samples]),
        image_id=[sample["image_id"] for sample in samples],
        features=[sample["features"] for sample in samples],
    )
    nothing = torch.zeros(0, 0, dtype=torch.int64)  # of a sample without a photograph
    if all("mask" in sample or not sample["features"] for sample in samples):
        batch["masks"] = [sample.get("mask", nothing) for sample in samples]
    unread = [image for sample in samples for image in sample.get("unread", ())]
    if unread:
        batch["unread"] = unread
    return batch


def collate_crops(samples: Sequence[Sample]) -> Batch:
    """Stack crops of features, level by level, and their masks if every sample has one.

    Example:
        >>> one = Sample(tags=torch.zeros(1), image_id="a", features=[torch.zeros(2, 8, 8), torch.zeros(3, 2, 2)])
        >>> [tuple(level.shape) for level in collate_crops([one, one])["features"]]
        [(2, 2, 8, 8), (2, 3, 2, 2)]
    """
    batch = Batch(
        tags=torch.stack([sample["tags"] for sample in samples]),
        image_id=[sample["image_id"] for sample in samples],
        features=[torch.stack(of_level) for of_level in zip(*(sample["features"] for sample in samples), strict=True)],
    )
    if all("mask" in sample for sample in samples):
        batch["mask"] = torch.stack([sample["mask"] for sample in samples])
    unread = [image for sample in samples for image in sample.get("unread", ())]
    if unread:
        batch["unread"] = unread
    return batch


def tag_row(tags: Sequence[int] | None, num_classes: int) -> Tensor:
    """Tags of an image as a row `(L,)`: 1 present, 0 absent, all -1 where they are unknown."""
    row = torch.full((num_classes,), UNKNOWN_TAG if tags is None else 0.0)
    row[list(tags or ())] = 1.0
    return row


def collate_read(samples: Sequence[Sample | SkippedImage], *, num_classes: int) -> Batch:
    """Stack the samples that were read and list those that were not; without any sample, tensors have no rows."""
    unread = [sample for sample in samples if isinstance(sample, SkippedImage)]
    if len(unread) < len(samples):
        batch = collate([sample for sample in samples if not isinstance(sample, SkippedImage)])
    else:
        batch = Batch(
            image=torch.zeros(0, 3, 1, 1),
            tags=torch.zeros(0, num_classes),
            image_id=[],
            original_size=torch.zeros(0, 2, dtype=torch.int64),
        )
    if unread:
        batch["unread"] = [*batch.get("unread", ()), *unread]
    return batch
