"""A square picture of a region: the photograph around it, and its outline."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from rca_lightning.atlas.outlines import Mask
from rca_lightning.visualization import Pixels

_LINE = (255, 221, 0)
_HALO = (0, 0, 0)
_SHADE = 0.7  # brightness outside the region: which side of the line is meant
_EMPTY = 238  # grey of what is no photograph
_FINER = 2  # drawn so many times as large, then scaled down: smooth lines


def crop_box(mask: Mask, *, margin: float = 0.15, least: int = 48) -> tuple[int, int, int, int]:
    """A box around the region of a mask, square where the photograph is large enough.

    Args:
        mask: `(H, W)` with at least one pixel.
        margin: how much to add on every side, as a share of the longer side of the region.
        least: shortest side of the box in pixels.

    Returns:
        top, left, bottom, right in pixels, bottom and right exclusive, inside the photograph.

    Example:
        >>> mask = np.zeros((100, 200), dtype=bool)
        >>> mask[40:60, 90:110] = True
        >>> crop_box(mask)
        (26, 76, 74, 124)
    """
    rows, columns = np.nonzero(mask.any(axis=1))[0], np.nonzero(mask.any(axis=0))[0]
    top, bottom = int(rows[0]), int(rows[-1]) + 1
    left, right = int(columns[0]), int(columns[-1]) + 1
    longer = max(bottom - top, right - left)
    side = max(longer + 2 * round(longer * margin), least)
    top, bottom = _span(top, bottom, side, mask.shape[0])
    left, right = _span(left, right, side, mask.shape[1])
    return top, left, bottom, right


def _span(first: int, last: int, side: int, extent: int) -> tuple[int, int]:
    """`side` pixels around `first:last`, moved inside `0:extent` and cut to it."""
    side = min(side, extent)
    start = min(max((first + last - side) // 2, 0), extent - side)
    return start, start + side


def draw_crop(image: Pixels, mask: Mask | None, side: int) -> Pixels:
    """The region and, darker, its surroundings, undistorted; the outline in yellow between black lines.

    Args:
        image: `(H, W, 3)`, the whole photograph.
        mask: `(H, W)`, the region; `None`: the whole photograph without an outline.
        side: pixels of the picture.

    Returns:
        `(side, side, 3)`; grey beside a photograph that is no square.
    """
    height, width = image.shape[:2]
    top, left, bottom, right = (0, 0, height, width) if mask is None else crop_box(mask)
    fine = side * _FINER
    scale = fine / max(bottom - top, right - left)
    target = (max(1, round((right - left) * scale)), max(1, round((bottom - top) * scale)))
    cropped = Image.fromarray(image[top:bottom, left:right]).resize(target, Image.Resampling.BICUBIC)
    pixels = np.array(cropped)
    if mask is not None:
        grey = Image.fromarray(mask[top:bottom, left:right].astype(np.uint8) * 255)
        grey = grey.resize(target, Image.Resampling.BILINEAR)
        if scale > 1:  # without the steps of single pixels
            grey = grey.filter(ImageFilter.GaussianBlur(scale / 2))
        inside = np.asarray(grey) > 127
        pixels[~inside] = pixels[~inside] * _SHADE
        _draw_outline(pixels, inside)
    canvas = Image.new("RGB", (fine, fine), (_EMPTY, _EMPTY, _EMPTY))
    canvas.paste(Image.fromarray(pixels), ((fine - target[0]) // 2, (fine - target[1]) // 2))
    return np.asarray(canvas.resize((side, side), Image.Resampling.BOX))


def _draw_outline(pixels: npt.NDArray[np.uint8], inside: Mask) -> None:
    """A bright line along the inner border between two dark ones: seen on any background."""
    outer = _grown(inside, 2)
    line = _shrunk(inside, 4)
    inner = _shrunk(line, 2)
    pixels[outer & ~inner] = _HALO
    pixels[inside & ~line] = _LINE


def _grown(mask: Mask, steps: int) -> Mask:
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] | padded[:-2, 1:-1] | padded[2:, 1:-1] | padded[1:-1, :-2] | padded[1:-1, 2:]
    return mask


def _shrunk(mask: Mask, steps: int) -> Mask:
    # Beyond the photograph is outside: a region that reaches its edge is closed there.
    for _ in range(steps):
        padded = np.pad(mask, 1)
        mask = padded[1:-1, 1:-1] & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask
