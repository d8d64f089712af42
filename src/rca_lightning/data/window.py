"""Where the pixels of a training crop lie in the photograph.

All coordinates are (x, y) with the origin at the upper left corner of the first pixel, so pixel i of a row spans
[i, i + 1] and has its centre at i + 0.5. A change of size is then a factor and nothing else.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Affine = npt.NDArray[np.float64]
"""(3, 3), acts on (x, y, 1)."""

ANCHORS: npt.NDArray[np.float32] = np.array([(0, 0), (1, 0), (0, 1)], dtype=np.float32)
"""Pixel indices (x, y) that are sent along with a picture through pads, crops and flips; see `undone`."""


def scaled(size: tuple[int, int], original: tuple[int, int]) -> Affine:
    """From a resized picture to the original; both sizes are (height, width)."""
    return np.diag([original[1] / size[1], original[0] / size[0], 1.0])


def shifted(left: int, top: int) -> Affine:
    """From a picture to the one it was cut from at this column and row."""
    return np.array([[1.0, 0.0, left], [0.0, 1.0, top], [0.0, 0.0, 1.0]])


def undone(moved: npt.NDArray[np.float32]) -> Affine:
    """From a picture to the one before some pads, crops and flips.

    Args:
        moved: (3, 2), the pixel indices at which `ANCHORS` have come out.
    """
    origin, right, below = np.asarray(moved, dtype=np.float64)
    linear = np.stack([right - origin, below - origin], axis=1)
    forward = np.eye(3)
    forward[:2, :2] = linear
    # Indices name centres, which lie half a pixel from the corners that coordinates count from.
    forward[:2, 2] = origin + 0.5 - linear @ (0.5, 0.5)
    backward: Affine = np.linalg.inv(forward).astype(np.float64, copy=False)
    return backward
