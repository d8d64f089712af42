"""Reads photographs, masks and saliency maps, and checks their sizes and values."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.classes import check_mask_classes
from rca_lightning.errors import DataError, RCAError
from rca_lightning.io.listing import require_regular_file

FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
"""What a file may be, whatever its ending says. Pillow reads more; EPS, for one, by running Ghostscript."""

_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED_ON_THE_SIDE = frozenset({5, 6, 7, 8})


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open an image file; any failure to read or decode it inside the `with` block becomes one clear error.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not an image of one of the `FORMATS`, cut off, damaged, with more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS` or more than there is memory for, or no regular file.
    """
    require_regular_file(path, remedy="restore it or take it out of the split")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # damaged EXIF: the pixels are still good
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path, formats=FORMATS)
        with image:
            yield image
    except RCAError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise DataError(
            f"{path}: {error}; scale the image down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        ) from error
    except UnidentifiedImageError as error:
        raise DataError(
            f"{path}: not an image that Pillow can read ({', '.join(FORMATS)}); replace it or take it out of the split"
        ) from error
    except MemoryError as error:
        raise DataError(f"{path}: there is not enough memory to decode it; scale the image down") from error
    except Exception as error:  # each format and each field in it has errors of its own for a damaged file
        raise DataError(
            f"{path}: cut off or damaged ({error}); fetch the file anew or take it out of the split"
        ) from error


def read_image(path: Path, *, reduction: int = 1) -> npt.NDArray[np.uint8]:
    """Read a photograph as 8-bit RGB, turned upright.

    Grey is copied to the three channels, CMYK and other colour spaces are converted, 16-bit grey
    is scaled by 255 / 65535, palettes are looked up, transparency is dropped, and the turn noted in the EXIF
    orientation is carried out.

    Args:
        path: the image file.
        reduction: 1, 2, 4 or 8: how many times smaller to decode each side of a JPEG file, which takes less time as
            frequencies that are not seen are left out. Other files are given as they are.

    Returns:
        The pixels, (H, W, 3) uint8, H and W after the turn, divided by the reduction and rounded up.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not an image, damaged, too large, or in a mode with no defined conversion.
    """
    with open_image(path) as image:
        return upright_rgb(image, path, reduction=reduction)


def upright_rgb(image: Image.Image, name: str | Path, *, reduction: int = 1) -> npt.NDArray[np.uint8]:
    """Convert an open image as `read_image` does.

    Args:
        image: it, decoded or not.
        name: what it is called in error messages.
        reduction: see `read_image`.

    Returns:
        The pixels, (H, W, 3) uint8.

    Raises:
        DataError: in a mode with no defined conversion.
    """
    turn = _TURNS.get(_orientation(image))
    if reduction > 1:
        image.draft(None, (max(1, image.width // reduction), max(1, image.height // reduction)))
    rgb = _to_rgb(image, name)
    if turn is not None:
        rgb = rgb.transpose(turn)
    return np.array(rgb, dtype=np.uint8)


def image_size(path: Path) -> tuple[int, int]:
    """Return height and width that `read_image` would give; only the head of the file is read.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not an image, or too large.
    """
    with open_image(path) as image:
        width, height = image.size
        return (width, height) if _orientation(image) in _TURNED_ON_THE_SIDE else (height, width)


def read_saliency(path: Path) -> npt.NDArray[np.float32]:
    """Read a saliency map, (H, W) float32 from 0 (background) to 1 (salient).

    The file is an 8- or 16-bit grey image; colour is converted to luminance. It is not turned by EXIF.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not an image, damaged or too large.
    """
    with open_image(path) as image:
        if _is_16_bit(image.mode):
            return np.asarray(_read_16_bit(image, path).astype(np.float32) / 65535, dtype=np.float32)
        return np.asarray(np.asarray(image.convert("L"), dtype=np.float32) / 255, dtype=np.float32)


def _is_16_bit(mode: str) -> bool:
    return mode == "I" or mode.startswith("I;16")


def _read_16_bit(image: Image.Image, path: str | Path) -> npt.NDArray[np.int64]:
    """The pixels of a grey image of more than 8 bits, (H, W) int64 in 0..65535."""
    pixels = np.asarray(image).astype(np.int64)
    if pixels.size and (pixels.min() < 0 or pixels.max() > 65535):
        raise DataError(f"{path}: values {pixels.min()}..{pixels.max()} do not fit 16 bits; save it with 8 or 16 bits")
    return pixels


def _to_rgb(image: Image.Image, path: str | Path) -> Image.Image:
    if _is_16_bit(image.mode):
        scaled = (_read_16_bit(image, path) * 255 + 32767) // 65535
        return Image.fromarray(scaled.astype(np.uint8)).convert("RGB")
    if image.mode == "RGB":
        return image  # converting it would copy it
    if image.mode == "P" and "transparency" in image.info:
        image = image.convert("RGBA")  # the straight way to RGB warns about transparency given as bytes
    if image.mode == "F":
        raise DataError(f"{path}: floating-point pixels have no fixed range; save it with 8 or 16 bits")
    try:
        return image.convert("RGB")
    except ValueError as error:
        raise DataError(f"{path}: no conversion from {image.mode} to RGB; save it as an RGB image") from error


def _orientation(image: Image.Image) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return int(image.getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # each field has errors of its own; a damaged EXIF block says nothing about the turn
        return 1


_Value = TypeVar("_Value")
_OVERHEAD = 400  # bytes of the objects around an array


class DecodedCache:
    """Keeps what comes first until there is no more room; nothing is ever evicted.

    The images of an epoch come once each, in random order: evicting the least recently used one would evict most of
    them before they come again.

    Args:
        max_mib: room in MiB; 0 keeps nothing.

    Attributes:
        used: bytes that are taken.

    Example:
        >>> cache = DecodedCache(1.0)
        >>> [cache.get("a", lambda: number) for number in (1, 2)]
        [1, 1]
    """

    def __init__(self, max_mib: float) -> None:
        self.max_mib = max_mib
        self.used = 0
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return what is kept, or make it and keep it if it fits; arrays that are kept become read-only."""
        if key in self._kept:
            return self._kept[key]  # type: ignore[no-any-return]
        value = make()
        size = _OVERHEAD + (value.nbytes if isinstance(value, np.ndarray) else 0)
        if self.used + size <= self.max_mib * 2**20:
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            self._kept[key] = value
            self.used += size
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"max_mib": self.max_mib, "used": 0, "_kept": {}}  # each process keeps its own


_INDEX_MODES = frozenset({"P", "L", "1"})


def read_mask(path: Path, *, num_classes: int) -> npt.NDArray[np.uint8]:
    """Read an index mask, (H, W) uint8: 0 background, 1..L classes, 255 void.

    Args:
        path: an image with one number a pixel: palette, 8-bit grey or 16-bit grey. It is not turned by
            EXIF: a mask is taken as drawn for the upright image.
        num_classes: L, the foreground classes.

    Raises:
        ArgumentError: more classes than a mask holds.
        DatasetNotFoundError: no such file.
        DataError: a colour image, damaged, or with values that are neither 0..L nor 255.
    """
    check_mask_classes(num_classes)
    with open_image(path) as image:
        if _is_16_bit(image.mode):
            values: npt.NDArray[np.int64] | npt.NDArray[np.uint8] = _read_16_bit(image, path)
        elif image.mode in _INDEX_MODES:
            values = np.array(image, dtype=np.uint8)
        else:
            raise DataError(
                f"{path}: a colour image ({image.mode}), not an index mask; convert its colours to class numbers "
                f"(0 background, 1..{num_classes} classes, 255 void) and save it as palette or grey PNG"
            )
    present = np.flatnonzero(np.bincount(values.ravel()))
    wrong = [int(value) for value in present if value > num_classes and value != IGNORE_INDEX]
    if wrong:
        raise DataError(
            f"{path}: values {wrong[:8]} in the mask; only 0..{num_classes} and 255 (void) are known, "
            "correct the mask or the list of classes"
        )
    return values.astype(np.uint8, copy=False)


def check_same_size(size: tuple[int, int], other: tuple[int, int], *, image_path: Path, other_name: str) -> None:
    """Raise `DataError` unless a mask or saliency map has the (height, width) of its upright image."""
    if other != size:
        raise DataError(
            f"{other_name} is {other[1]} x {other[0]} pixels, but its image {image_path} is {size[1]} x {size[0]} "
            "after turning it upright; make them the same size"
        )
