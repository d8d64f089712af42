"""From decoded pixels to tensors: augmentation for training, normalisation for everything."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.data.classes import VOID
from rca_lightning.data.window import ANCHORS, Affine, scaled, shifted, undone
from rca_lightning.errors import ArgumentError

# albumentations asks the package index for updates when it is imported, unless told otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

IMAGENET_MEAN: tuple[float, float, float] = (0.485, 0.456, 0.406)
"""Mean of the ImageNet training photographs, RGB in [0, 1]."""

IMAGENET_STD: tuple[float, float, float] = (0.229, 0.224, 0.225)
"""Standard deviation of the ImageNet training photographs, RGB in [0, 1]."""

_ATTEMPTS = 10


@dataclass(frozen=True)
class Pixels:
    """Decoded arrays of one image, all of one height and width.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        mask: (H, W) uint8 with 255 for void, or None.
        saliency: (H, W) float32 in [0, 1], or None.
        padded: (H, W) bool, true where no photograph is; None where it is everywhere.
        window: from these pixels to those of the photograph, see `Sample`; None where they are the same.
    """

    image: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8] | None = None
    saliency: npt.NDArray[np.float32] | None = None
    padded: npt.NDArray[np.bool_] | None = None
    window: Affine | None = None


def normalise(pixels: Pixels) -> Tensor:
    """Return the image as (3, H, W) float32 with ImageNet mean 0 and standard deviation 1; padding is 0."""
    mean = torch.tensor(IMAGENET_MEAN).mul_(255).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).mul_(255).view(3, 1, 1)
    image = torch.from_numpy(pixels.image).permute(2, 0, 1).to(torch.float32, memory_format=torch.contiguous_format)
    image = image.sub_(mean).div_(std)
    if pixels.padded is not None:
        image.masked_fill_(torch.from_numpy(pixels.padded), 0.0)
    return image


class TrainAugmentation:
    """Random scale, crop, flip and colour jitter, all of them a function of the seed alone.

    The photograph is resized so that its long side is a random multiple of the crop, padded where
    it is smaller than the crop (mean colour, mask void, saliency 0), cropped at random, flipped left to
    right in half of the cases, and jittered in brightness, contrast, saturation and hue. A crop whose mask is
    all void is drawn anew; if that does not help, a window around a labelled pixel is taken.

    Args:
        crop_size: side of the square crop in pixels.
        scale: bounds of the long side of the resized photograph, as multiples of `crop_size`.
        flip: whether to flip at random.
        color_jitter: strength in [0, 1]: brightness, contrast and saturation change by up to this part,
            the hue by a fifth of it; 0 switches it off.

    Raises:
        ArgumentError: a size, bound or strength out of range.
    """

    def __init__(self, *, crop_size: int, scale: tuple[float, float], flip: bool, color_jitter: float) -> None:
        if crop_size < 16:
            raise ArgumentError("crop_size", crop_size, "must be at least 16 pixels")
        if not 0 < scale[0] <= scale[1] < float("inf"):
            raise ArgumentError("scale", scale, "must be two positive multiples of crop_size, the smaller one first")
        if not 0 <= color_jitter <= 1:
            raise ArgumentError("color_jitter", color_jitter, "must lie between 0 (none) and 1")
        self.crop_size = crop_size
        self.scale = scale
        self.flip = flip
        self.color_jitter = color_jitter
        self._steps: tuple[Callable[..., Any], Callable[..., Any]] | None = None

    def __call__(self, pixels: Pixels, *, seed: tuple[int, ...]) -> Pixels:
        """Augment one image.

        Args:
            pixels: the decoded image, mask and saliency map.
            seed: non-negative numbers that decide every random choice, such as (run, epoch, index).

        Returns:
            Arrays of `crop_size` x `crop_size`.
        """
        resize, crop = self._pipelines()
        # One pair of generators for all steps: albumentations' own seeding gives every step the same stream,
        # which would tie the flip to the crop and the jitter.
        generator = np.random.default_rng(seed)
        python_generator = random.Random(int(generator.integers(1 << 62)))
        for step in (resize, crop):
            step.set_random_state(generator, python_generator)  # type: ignore[attr-defined]
        whole = _as_targets(pixels)
        for _ in range(_ATTEMPTS):
            resized = resize(**whole)
            placed = scaled(resized["image"].shape[:2], pixels.image.shape[:2])
            drawn = crop(**resized, keypoints=ANCHORS)
            if pixels.mask is None or (drawn["mask"] != VOID).any():
                return _from_targets(drawn, placed)
        labelled = np.argwhere(pixels.mask != VOID)
        if labelled.size == 0:
            return _from_targets(drawn, placed)
        row, column = labelled[python_generator.randrange(len(labelled))]
        part, placed = _window(whole, int(row), int(column), self.crop_size)
        return _from_targets(crop(**part, keypoints=ANCHORS), placed)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": None}  # loader processes build their own

    def _pipelines(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        if self._steps is None:
            self._steps = self._build()
        return self._steps

    def _build(self) -> tuple[Callable[..., Any], Callable[..., Any]]:
        import albumentations as A

        size = self.crop_size
        sides = list(range(round(size * self.scale[0]), round(size * self.scale[1]) + 1))
        crop: list[Any] = [
            A.PadIfNeeded(size, size, position="random", fill=0, fill_mask=VOID),
            A.RandomCrop(size, size),
        ]
        if self.flip:
            crop.append(A.HorizontalFlip(p=0.5))
        if self.color_jitter:
            part = self.color_jitter
            crop.append(A.ColorJitter(brightness=part, contrast=part, saturation=part, hue=part / 5, p=0.8))
        extra = {"saliency": "mask", "inside": "mask"}
        # Linear interpolation alone drops most pixels of a large photograph, averaging areas keeps them.
        resize = [A.LongestMaxSize(max_size=sides, area_for_downscale="image")]
        points = A.KeypointParams(format="xy", remove_invisible=False)
        first = A.Compose(resize, additional_targets=extra)
        return first, A.Compose(crop, keypoint_params=points, additional_targets=extra)


def _as_targets(pixels: Pixels) -> dict[str, npt.NDArray[Any]]:
    targets: dict[str, npt.NDArray[Any]] = {
        "image": pixels.image,
        "inside": np.zeros(pixels.image.shape[:2], dtype=np.uint8),  # padding writes VOID here
    }
    if pixels.mask is not None:
        targets["mask"] = pixels.mask
    if pixels.saliency is not None:
        targets["saliency"] = pixels.saliency
    return targets


def _from_targets(targets: dict[str, npt.NDArray[Any]], placed: Affine) -> Pixels:
    padded = targets["inside"] == VOID
    saliency = targets.get("saliency")
    return Pixels(
        image=np.ascontiguousarray(targets["image"]),
        mask=targets.get("mask"),
        saliency=None if saliency is None else np.where(padded, np.float32(0), saliency),
        padded=padded,
        window=placed @ undone(targets["keypoints"]),
    )


def _window(
    targets: dict[str, npt.NDArray[Any]], row: int, column: int, size: int
) -> tuple[dict[str, npt.NDArray[Any]], Affine]:
    height, width = targets["image"].shape[:2]
    top = min(max(row - size // 2, 0), max(height - size, 0))
    left = min(max(column - size // 2, 0), max(width - size, 0))
    part = {name: np.ascontiguousarray(array[top : top + size, left : left + size]) for name, array in targets.items()}
    return part, shifted(left, top)
