"""Readers of the formats, as plain as their descriptions: a pixel is in a polygon if its centre is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def inside(polygon: Sequence[Sequence[float]], x: float, y: float) -> bool:
    """Even-odd rule: whether a ray to the right crosses the outline an odd number of times."""
    odd = False
    for number in range(len(polygon)):
        (x0, y0), (x1, y1) = polygon[number - 1], polygon[number]
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            odd = not odd
    return odd


def region_of(polygon: Sequence[Sequence[float]], shape: tuple[int, int]) -> np.ndarray:
    corners = np.asarray(polygon, dtype=np.float64).tolist()
    region = np.zeros(shape, dtype=np.bool_)
    for y in range(shape[0]):
        for x in range(shape[1]):
            region[y, x] = inside(corners, x + 0.5, y + 0.5)
    return region
