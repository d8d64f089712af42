"""Augments and normalises decoded images."""

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

from rca_lightning.constants import IGNORE_INDEX, IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.errors import ArgumentError

_REDUCTIONS = (8, 4, 2)


def fitted(size: tuple[int, int], long_side: int) -> tuple[int, int]:
    """Return height and width of a picture whose long side is changed to `long_side`, at least 1.

    Example:
        >>> fitted((375, 500), 250)
        (188, 250)
    """
    scale = long_side / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def reduction(size: tuple[int, int], target: tuple[int, int]) -> int:
    """Return how many times smaller a JPEG of a (height, width) may be decoded and not be smaller than the target.

    Example:
        >>> reduction((1500, 2000), (375, 500)), reduction((1500, 2000), (376, 500))
        (4, 2)
    """
    return next((by for by in _REDUCTIONS if size[0] // by >= target[0] and size[1] // by >= target[1]), 1)


def resized_targets(
    image: npt.NDArray[np.uint8], target: tuple[int, int], **masks: npt.NDArray[Any] | None
) -> dict[str, npt.NDArray[Any]]:
    """Resize a photograph (h, w, 3), possibly decoded smaller, and the masks (H, W) of it that are not None.

    Returns:
        `image`, the masks, and `inside`, which is 0 everywhere, all of the target height and width.
    """
    import cv2

    height, width = target
    targets: dict[str, npt.NDArray[Any]] = {"image": image, "inside": np.zeros(target, dtype=np.uint8)}
    if image.shape[:2] != target:
        # Linear interpolation alone drops most pixels of a large photograph, averaging areas keeps them.
        method = cv2.INTER_AREA if max(target) < max(image.shape[:2]) else cv2.INTER_LINEAR
        targets["image"] = cv2.resize(image, (width, height), interpolation=method)
    for name, mask in masks.items():
        if mask is not None:
            nearest = mask.shape != target
            targets[name] = cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST) if nearest else mask
    return targets


Affine = npt.NDArray[np.float64]
"""(3, 3), acts on (x, y, 1)."""

ANCHORS: npt.NDArray[np.float32] = np.array([(0, 0), (1, 0), (0, 1)], dtype=np.float32)
"""Pixel indices (x, y) that are sent along with a picture through pads, crops and flips; see `undone`."""


def scaled(size: tuple[int, int], original: tuple[int, int]) -> Affine:
    """Map of a resized picture to the original; both sizes are (height, width)."""
    return np.diag([original[1] / size[1], original[0] / size[0], 1.0])


def shifted(left: int, top: int) -> Affine:
    """Map of a picture to the one it was cut from at this column and row."""
    return np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])


def undone(moved: npt.NDArray[np.float32]) -> Affine:
    """Map of a picture to the one before pads, crops and flips; `moved` (3, 2) is where `ANCHORS` have come out."""
    origin, right, below = np.asarray(moved, dtype=np.float64)
    linear = np.stack([right - origin, below - origin], axis=1)
    forward = np.eye(3)
    forward[:2, :2] = linear
    # Indices name centres, which lie half a pixel from the corners that coordinates count from.
    forward[:2, 2] = origin + 0.5 - linear @ (0.5, 0.5)
    backward: Affine = np.linalg.inv(forward).astype(np.float64, copy=False)
    return backward


# albumentations asks the package index for updates when it is imported, unless told otherwise.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_MEAN = torch.tensor(IMAGENET_MEAN).mul_(255).view(3, 1, 1)
_STD = torch.tensor(IMAGENET_STD).mul_(255).view(3, 1, 1)
_ATTEMPTS = 10

Decoder = Callable[[tuple[int, int]], npt.NDArray[np.uint8]]
"""Gives a photograph, (h, w, 3) RGB, in its own size, or smaller but no smaller than the height and width asked for."""


@dataclass(frozen=True)
class Pixels:
    """Decoded arrays of one image, all of one height and width."""

    image: npt.NDArray[np.uint8]  # (H, W, 3) RGB
    mask: npt.NDArray[np.uint8] | None = None  # (H, W), 255 for void
    saliency: npt.NDArray[np.float32] | None = None  # (H, W) in [0, 1]
    padded: npt.NDArray[np.bool_] | None = None  # (H, W), true outside the photograph; None: nowhere
    window: Affine | None = None  # from these pixels to those of the photograph, see `Sample`; None: the same


def normalise(pixels: Pixels) -> Tensor:
    """Return the image as (3, H, W) float32 with ImageNet mean 0 and standard deviation 1; padding is 0."""
    planes = np.ascontiguousarray(pixels.image.transpose(2, 0, 1))  # (H, W, 3) -> (3, H, W), as bytes four times faster
    image = torch.from_numpy(planes).to(torch.float32).sub_(_MEAN).div_(_STD)
    if pixels.padded is not None and pixels.padded.any():
        image.mul_(torch.from_numpy(~pixels.padded))  # four times faster than filling it in
    return image


class TrainAugmentation:
    """Scales, crops, flips and jitters at random, by the seed alone.

    The photograph is resized so that its long side is a random multiple of the crop, padded where it is smaller than
    the crop (mean colour, mask void, saliency 0), cropped, flipped left to right in half of the cases, and jittered. A
    crop whose mask is all void is drawn anew; if that does not help, a window around a labelled pixel is taken.

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
        self._sides = list(range(round(crop_size * scale[0]), round(crop_size * scale[1]) + 1))
        self._steps: Callable[..., Any] | None = None

    def __call__(self, pixels: Pixels, *, seed: tuple[int, ...]) -> Pixels:
        """Augment one image to a crop; the seed, such as (run, epoch, index), decides every random choice."""
        size = pixels.image.shape[:2]
        return self.decoded(lambda _: pixels.image, size, mask=pixels.mask, saliency=pixels.saliency, seed=seed)

    def decoded(
        self,
        image: Decoder,
        size: tuple[int, int],
        *,
        mask: npt.NDArray[np.uint8] | None,
        saliency: npt.NDArray[np.float32] | None,
        seed: tuple[int, ...],
    ) -> Pixels:
        """Augment an image of this (H, W) that is decoded once it is known how large it has to be."""
        if self._steps is None:
            self._steps = self._build()
        crop = self._steps
        # One pair of generators for all steps: albumentations' own seeding gives every step the same stream,
        # which would tie the flip to the crop and the jitter.
        generator = np.random.default_rng(seed)
        python_generator = random.Random(int(generator.integers(1 << 62)))
        crop.set_random_state(generator, python_generator)  # type: ignore[attr-defined]
        beside = {"mask": mask, "saliency": saliency}
        for _ in range(_ATTEMPTS):
            python_generator.random()  # so that a seed gives the crop it gave when albumentations resized as well
            target = fitted(size, python_generator.choice(self._sides))
            resized = resized_targets(image(target), target, **beside)
            drawn = crop(**resized, keypoints=ANCHORS)
            if mask is None or (drawn["mask"] != IGNORE_INDEX).any():
                return _from_targets(drawn, scaled(target, size))
        labelled = np.argwhere(mask != IGNORE_INDEX)
        if labelled.size == 0:
            return _from_targets(drawn, scaled(target, size))
        row, column = labelled[python_generator.randrange(len(labelled))]
        top, left = (
            min(max(int(at) - self.crop_size // 2, 0), max(side - self.crop_size, 0))
            for at, side in zip((row, column), size, strict=True)
        )
        window = slice(top, top + self.crop_size), slice(left, left + self.crop_size)
        whole = resized_targets(image(size), size, **beside)
        part = {name: np.ascontiguousarray(array[window]) for name, array in whole.items()}
        return _from_targets(crop(**part, keypoints=ANCHORS), shifted(left, top))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_steps": None}  # loader processes build their own

    def _build(self) -> Callable[..., Any]:
        import albumentations as A

        size = self.crop_size
        crop: list[Any] = [
            A.PadIfNeeded(size, size, position="random", fill=0, fill_mask=IGNORE_INDEX),
            A.RandomCrop(size, size),
        ]
        if self.flip:
            crop.append(A.HorizontalFlip(p=0.5))
        if self.color_jitter:
            part = self.color_jitter
            crop.append(A.ColorJitter(brightness=part, contrast=part, saturation=part, hue=part / 5, p=0.8))
        points = A.KeypointParams(format="xy", remove_invisible=False)
        extra = {"saliency": "mask", "inside": "mask"}
        return A.Compose(crop, keypoint_params=points, additional_targets=extra)  # type: ignore[no-any-return]


def _from_targets(targets: dict[str, npt.NDArray[Any]], placed: Affine) -> Pixels:
    padded = targets["inside"] == IGNORE_INDEX
    saliency = targets.get("saliency")
    return Pixels(
        image=np.require(targets["image"], requirements=("C_CONTIGUOUS", "WRITEABLE")),
        mask=targets.get("mask"),
        saliency=None if saliency is None else np.where(padded, np.float32(0), saliency),
        padded=padded,
        window=placed @ undone(targets["keypoints"]),
    )
