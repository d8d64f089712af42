"""The colour palette of VOC segmentation masks."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


def voc_palette(n: int = 256) -> npt.NDArray[np.uint8]:
    """Colours of the first `n` label values, as in the official VOC development kit.

    The bits of a label are dealt out in turn to red, green and blue, most significant bit of the colour first,
    so that 0 is black, 1 is (128, 0, 0) and 255, the void label, is (224, 224, 192).

    Args:
        n: number of colours, 0 to 256.

    Returns:
        `(n, 3)` RGB colours.

    Example:
        >>> voc_palette()[15].tolist()  # person
        [192, 128, 128]
    """
    labels = np.arange(n)
    palette = np.zeros((n, 3), dtype=np.uint8)
    for level in range(8):
        for channel in range(3):
            bit = (labels >> (3 * level + channel)) & 1
            palette[:, channel] |= (bit << (7 - level)).astype(np.uint8)
    return palette
