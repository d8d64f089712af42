"""Reading back the maps that `rca predict` has stored."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from rca_lightning.data.npz_file import read_npz
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.pseudo_labels.inputs import check_maps
from rca_lightning.pseudo_labels.multiscale import Seeds

_REMEDY = "let rca predict make them anew"
_SMALL = 1 << 22  # numbers; maps of so few are read, and their size is named if it is wrong


def read_maps(path: Path, *, size: tuple[int, int], num_classes: int) -> Seeds:
    """Maps that `PseudoLabelWriter` has written; the probabilities are those of their classes.

    Args:
        path: `cams/<id>.npz`.
        size: height and width of the photograph, which bound what is unpacked.
        num_classes: foreground classes `L`.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if the file is damaged or not one of these, or of a photograph of another size.
    """
    most = {"maps": max(num_classes * size[0] * size[1], _SMALL), "classes": num_classes, "probabilities": num_classes}
    arrays = read_npz(path, most, remedy=_REMEDY)
    maps, classes, probabilities = arrays["maps"], arrays["classes"], arrays["probabilities"]
    if maps.ndim != 3 or classes.shape != maps.shape[:1] or probabilities.shape != maps.shape[:1]:
        raise DataError(f"{path}: {maps.shape} maps of {classes.shape} classes; {_REMEDY}")
    if maps.shape[1:] != size:
        raise DataError(f"{path}: maps of {maps.shape[1:]} cells for a photograph of {size} pixels; {_REMEDY}")
    if classes.dtype != np.int64 or not _ascending(classes, num_classes):
        raise DataError(f"{path}: classes {classes.tolist()[:8]} of {num_classes}; {_REMEDY}")
    chances = _floats(probabilities)
    if not bool(((chances >= 0) & (chances <= 1)).all()):
        raise DataError(f"{path}: probabilities {chances.tolist()[:8]} outside [0, 1]; {_REMEDY}")
    found = torch.from_numpy(_floats(maps))
    try:
        check_maps(found)
    except ArgumentError as error:
        raise DataError(f"{path}: {error}; {_REMEDY}") from error
    return Seeds(found, torch.from_numpy(classes), torch.from_numpy(chances))


def _ascending(classes: npt.NDArray[Any], num_classes: int) -> bool:
    steps = np.diff(classes, prepend=-1, append=num_classes)
    return bool((steps > 0).all())


def _floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is refused
        return values.astype(np.float32)
