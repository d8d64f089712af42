"""The change of size in training: photographs by area or linearly, masks and saliency maps by the nearest pixel."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

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
    """Return how many times smaller a JPEG may be decoded and still be as large as the target: 1, 2, 4 or 8.

    Args:
        size: height and width of the photograph.
        target: height and width that it is resized to.

    Example:
        >>> reduction((1500, 2000), (375, 500)), reduction((1500, 2000), (376, 500))
        (4, 2)
    """
    return next((by for by in _REDUCTIONS if size[0] // by >= target[0] and size[1] // by >= target[1]), 1)


def resized_targets(
    image: npt.NDArray[np.uint8], target: tuple[int, int], **masks: npt.NDArray[Any] | None
) -> dict[str, npt.NDArray[Any]]:
    """Resize a photograph and what lies over it.

    Args:
        image: (h, w, 3), the photograph, possibly decoded smaller.
        target: height and width to come out.
        masks: (H, W) by name, or None.

    Returns:
        `image`, the masks that are there, and `inside`, which is 0 everywhere.
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
