"""Draws maps and masks over photographs, and panels of pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rca_lightning.constants import IMAGENET_MEAN, IMAGENET_STD
from rca_lightning.data.classes import voc_palette

Pixels = npt.NDArray[np.uint8]  # (H, W, 3)
_TITLE_HEIGHT = 18


def rgb(images: Tensor) -> Tensor:
    """Undo the ImageNet normalisation: `(..., 3, H, W)` -> float32 in `[0, 1]`, on the same device."""
    values = images.detach().float()
    mean, std = values.new_tensor(IMAGENET_MEAN), values.new_tensor(IMAGENET_STD)
    return (values * std[:, None, None] + mean[:, None, None]).clamp(0, 1)


def denormalise(image: Tensor) -> Pixels:
    """Undo the ImageNet normalisation: `(3, H, W)` float -> `(H, W, 3)` uint8."""
    return np.asarray((rgb(image.cpu()) * 255).round().to(torch.uint8).permute(1, 2, 0))


def colours(image: Tensor) -> Tensor:
    """The colours of `denormalise` as `(3, H, W)` float32 in `[0, 1]`, on the CPU."""
    return torch.from_numpy(denormalise(image)).permute(2, 0, 1).float() / 255  # (H, W, 3) -> (3, H, W)


def overlay_mask(image: Pixels, mask: npt.NDArray[np.uint8], opacity: float = 0.6) -> Pixels:
    """Lay the VOC colours of a mask `(H, W)` over an image; background stays as it is, void is its pale yellow."""
    colours = voc_palette()[mask].astype(np.float32)
    weight = np.where(mask == 0, 0.0, opacity)[:, :, None]
    return _as_pixels(image * (1 - weight) + colours * weight)


def overlay_maps(image: Pixels, maps: Tensor, classes: Tensor) -> Pixels:
    """Tint each pixel by the VOC colour of its strongest class, as strongly as the map is there.

    Args:
        image: `(H, W, 3)`.
        maps: `(K, H, W)` in `[0, 1]`.
        classes: `(K,)` class index of each map.
    """
    dimmed = image * 0.45
    if len(classes) == 0:
        return _as_pixels(dimmed)
    strength, winner = maps.float().cpu().max(dim=0)
    colours = voc_palette()[(classes.cpu()[winner] + 1).numpy()].astype(np.float32)
    weight = strength.numpy()[:, :, None]
    return _as_pixels(dimmed * (1 - weight * 0.5) + colours * weight * 0.85)


def draw_panel(rows: Sequence[Sequence[Pixels]], titles: Sequence[str], height: int = 160) -> Pixels:
    """Put pictures of any size, scaled to one height, side by side under their titles, one row for each image."""
    scaled = [[_to_height(picture, height) for picture in row] for row in rows]
    widths = [max(row[column].shape[1] for row in scaled) for column in range(len(titles))]
    gap = 4
    canvas = Image.new(
        "RGB", (sum(widths) + gap * (len(widths) + 1), _TITLE_HEIGHT + (height + gap) * len(rows)), "white"
    )
    pen = ImageDraw.Draw(canvas)
    left = gap
    for column, title in enumerate(titles):
        pen.text((left + 2, 3), title, fill="black", font=ImageFont.load_default())
        for index, row in enumerate(scaled):
            canvas.paste(Image.fromarray(row[column]), (left, _TITLE_HEIGHT + (height + gap) * index))
        left += widths[column] + gap
    return np.asarray(canvas)


def _as_pixels(values: npt.NDArray[np.floating]) -> Pixels:
    return np.asarray(np.clip(values, 0, 255).round(), dtype=np.uint8)


def _to_height(picture: Pixels, height: int) -> Pixels:
    width = max(1, round(picture.shape[1] * height / picture.shape[0]))
    return np.asarray(Image.fromarray(picture).resize((width, height), Image.Resampling.BILINEAR))
