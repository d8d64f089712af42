"""Reading index masks and checking that they mean what the classes say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from rca_lightning.data.classes import VOID, check_mask_classes
from rca_lightning.data.decode import is_16_bit, open_image, read_16_bit
from rca_lightning.errors import DataError

_INDEX_MODES = frozenset({"P", "L", "1"})


def read_mask(path: Path, *, num_classes: int) -> npt.NDArray[np.uint8]:
    """Read an index mask.

    Args:
        path: an image with one number a pixel: palette, 8-bit grey or 16-bit grey. It is not turned by
            EXIF: a mask is taken as drawn for the upright image.
        num_classes: L, the foreground classes.

    Returns:
        The mask, (H, W) uint8: 0 background, 1..L classes, 255 void.

    Raises:
        ArgumentError: more classes than a mask holds.
        DatasetNotFoundError: no such file.
        DataError: a colour image, damaged, or with values that are neither 0..L nor 255.
    """
    check_mask_classes(num_classes)
    with open_image(path) as image:
        if is_16_bit(image.mode):
            values: npt.NDArray[np.int64] | npt.NDArray[np.uint8] = read_16_bit(image, path)
        elif image.mode in _INDEX_MODES:
            values = np.array(image, dtype=np.uint8)
        else:
            raise DataError(
                f"{path}: a colour image ({image.mode}), not an index mask; convert its colours to class numbers "
                f"(0 background, 1..{num_classes} classes, 255 void) and save it as palette or grey PNG"
            )
    present = np.flatnonzero(np.bincount(values.ravel()))
    wrong = [int(value) for value in present if value > num_classes and value != VOID]
    if wrong:
        raise DataError(
            f"{path}: values {wrong[:8]} in the mask; only 0..{num_classes} and 255 (void) are known, "
            "correct the mask or the list of classes"
        )
    return values.astype(np.uint8, copy=False)


def check_same_size(size: tuple[int, int], other: tuple[int, int], *, image_path: Path, other_name: str) -> None:
    """Check that a mask or saliency map covers its image pixel by pixel.

    Args:
        size: height and width of the upright image.
        other: height and width of the mask or map.
        image_path: file of the image, for the error.
        other_name: what and where the other one is, for the error.

    Raises:
        DataError: the sizes differ; both are named as width x height.
    """
    if other != size:
        raise DataError(
            f"{other_name} is {other[1]} x {other[0]} pixels, but its image {image_path} is {size[1]} x {size[0]} "
            "after turning it upright; make them the same size"
        )
