"""Reads photographs in any form: files, folders, PIL images, arrays and tensors."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from rca_lightning.data.images import read_image, upright_rgb
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, RCAError
from rca_lightning.io.listing import list_images

Photograph: TypeAlias = str | Path | Image.Image | npt.NDArray[Any] | Tensor
Photographs: TypeAlias = Photograph | Sequence[Photograph]
Pixels: TypeAlias = npt.NDArray[np.uint8]

_LAYOUTS = "give (H, W), (H, W, 3) or a tensor (3, H, W): uint8 0 to 255, uint16 grey, or floating point 0 to 1"


def is_one(photographs: Photographs) -> bool:
    """Whether this is one photograph: no folder, list, or batch."""
    if isinstance(photographs, (str, Path)):
        return not Path(photographs).expanduser().is_dir()
    if isinstance(photographs, (np.ndarray, Tensor)):
        return photographs.ndim < 4
    return isinstance(photographs, Image.Image)


def read_photographs(photographs: Photographs) -> Iterator[tuple[str, Pixels]]:
    """Reads photographs one after the other, as the data module does: upright, 8-bit RGB.

    Args:
        photographs: a file, a folder of image files, a PIL image, an array `(H, W)` or `(H, W, 3)`, a tensor `(H, W)`
            or `(3, H, W)`, a batch of arrays or tensors with one axis more, or a sequence of photographs.

    Yields:
        The name without its ending, or else the number in the order given, and the pixels `(H, W, 3)`.

    Raises:
        ArgumentError: for something else, or an array of another layout.
        DatasetNotFoundError: for a file or folder that is not there.
        DataError: for a file that cannot be used.
    """
    if is_one(photographs):
        yield _name(photographs, 0), read_photograph(photographs)  # type: ignore[arg-type]
        return
    if isinstance(photographs, (str, Path)):
        folder = Path(photographs).expanduser()
        files = list_images(folder)
        if not files:
            raise DataError(f"{folder}: no image in it; give a folder of photographs")
        for name, path in files.items():
            yield name, read_image(path)
        return
    if not isinstance(photographs, (Sequence, np.ndarray, Tensor)):
        raise ArgumentError("photograph", type(photographs).__name__, "give a file, a PIL image, an array or a list")
    for number, one in enumerate(photographs):
        if not is_one(one):
            raise ArgumentError("photograph", type(one).__name__, "give single photographs in a list")
        yield _name(one, number), read_photograph(one)


def read_photograph(photograph: Photograph) -> Pixels:
    """Reads one photograph as `(H, W, 3)` uint8; see `read_photographs`."""
    if isinstance(photograph, (str, Path)):
        if "://" in str(photograph):
            raise ArgumentError("photograph", str(photograph), "photographs are not downloaded; give a file")
        path = Path(photograph).expanduser()
        if not path.exists():
            raise DatasetNotFoundError(f"photograph={str(photograph)!r}: no such file; give the path of a photograph")
        return read_image(path)
    if isinstance(photograph, Image.Image):
        return _from_pil(photograph)
    if isinstance(photograph, Tensor):
        array = photograph.detach().cpu()
        if array.is_floating_point():
            array = array.float()
        if array.ndim == 3 and array.shape[0] in (1, 3):
            array = array.permute(1, 2, 0)  # (3, H, W) -> (H, W, 3)
        elif array.ndim == 3:
            raise ArgumentError("photograph", f"tensor {tuple(photograph.shape)}", _LAYOUTS)
        return _from_array(array.numpy())
    if isinstance(photograph, np.ndarray):
        return _from_array(photograph)
    raise ArgumentError("photograph", type(photograph).__name__, "give a file, a PIL image, an array or a tensor")


def _name(photograph: Photographs, number: int) -> str:
    where = getattr(photograph, "filename", "") if isinstance(photograph, Image.Image) else photograph
    return Path(where).stem if isinstance(where, (str, Path)) and str(where) else str(number)


def _from_pil(image: Image.Image) -> Pixels:
    name = getattr(image, "filename", "") or "the PIL image"
    try:
        pixels = upright_rgb(image, name)
    except RCAError:
        raise
    except Exception as error:  # an image that is not decoded yet may be cut off, or its file closed
        raise DataError(f"{name}: cut off or damaged ({error}); open it anew") from error
    return _checked(pixels, pixels)


def _from_array(array: npt.NDArray[Any]) -> Pixels:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.dtype == np.uint16 and array.ndim == 2:
        return _from_pil(Image.fromarray(array))
    if array.ndim == 3 and array.shape[2] == 4:
        array = array[:, :, :3]  # transparency is dropped, as that of files is
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        raise ArgumentError("photograph", f"array {array.shape}", _LAYOUTS)
    if np.issubdtype(array.dtype, np.floating):
        if array.size and not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise ArgumentError(
                "photograph", f"values from {array.min():.4g} to {array.max():.4g}", f"{_LAYOUTS}; not normalised"
            )
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ArgumentError("photograph", f"array of {array.dtype}", _LAYOUTS)
    return _checked(array, np.repeat(array[:, :, None], 3, axis=2) if array.ndim == 2 else array)


def _checked(given: npt.NDArray[Any], pixels: Pixels) -> Pixels:
    if not pixels.size:
        raise ArgumentError("photograph", f"array {given.shape}", "it has no pixel")
    return np.ascontiguousarray(pixels)


def find_device(device: str | torch.device = "auto") -> torch.device:
    """Finds the device to compute on.

    Args:
        device: "auto": CUDA where there is a GPU, else MPS on Apple's chips, else the CPU; or the name of one.

    Raises:
        ArgumentError: for one that is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen)
    except Exception as error:  # which one depends on how torch was built
        reason = str(error).splitlines()[0]
        raise ArgumentError(
            "device", str(device), f"not here ({reason}); give 'auto', 'cpu', 'cuda' or 'mps'"
        ) from error
    return chosen
