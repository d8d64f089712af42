"""Procedural colours, noise and periodic patterns from which generated images are painted."""

from __future__ import annotations

import colorsys
from typing import Literal

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float32]
PatternName = Literal["stripes", "checks", "dots", "rings", "waves", "spokes", "cross", "halves"]


def colour(hue: float, saturation: float, value: float) -> FloatArray:
    """An RGB colour `(3,)` in [0, 1] from hue (in turns), saturation and value."""
    saturation, value = min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)
    return np.array(colorsys.hsv_to_rgb(hue % 1.0, saturation, value), dtype=np.float32)


def smooth_noise(rng: np.random.Generator, size: int, *, cells: tuple[int, int]) -> FloatArray:
    """Noise `(size, size)` of unit variance that varies smoothly over a grid of `cells` (rows, columns)."""
    import cv2  # here, not above: importing this module must stay cheap

    rows, columns = (max(2, min(count, size)) for count in cells)
    grid = rng.standard_normal((rows, columns)).astype(np.float32)
    field = np.asarray(cv2.resize(grid, (size, size), interpolation=cv2.INTER_CUBIC), dtype=np.float32)
    return np.asarray((field - field.mean()) / (field.std() + 1e-6), dtype=np.float32)


def pattern(name: PatternName, u: FloatArray, v: FloatArray, *, frequency: float) -> FloatArray:
    """A pattern in [-1, 1] at the coordinates `u` and `v`, which have the shape of the result.

    Args:
        name: the kind of pattern.
        u: first coordinate in the frame of the object or part, 1 at its nominal rim.
        v: second coordinate.
        frequency: repetitions over one unit of length; over one turn for `"spokes"`; without effect on `"cross"`
            and `"halves"`.
    """
    k = np.float32(2 * np.pi * frequency)
    if name == "stripes":
        field = np.sin(k * u)
    elif name == "checks":
        field = np.sign(np.sin(k * u) * np.sin(k * v))
    elif name == "dots":
        field = np.clip(2.5 * np.cos(k * u) * np.cos(k * v) - 1, -1, 1)
    elif name == "rings":
        field = np.sin(k * np.hypot(u, v))
    elif name == "waves":
        field = np.sin(k * u + 1.6 * np.sin(k * v))
    elif name == "spokes":
        field = np.sin(round(frequency) * np.arctan2(v, u))
    elif name == "cross":
        field = np.where(np.minimum(np.abs(u), np.abs(v)) < 0.28, 1, -1)
    else:  # halves
        field = np.where(u > 0, 1, -1)
    return np.asarray(field, dtype=np.float32)
