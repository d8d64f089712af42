"""Files of one photograph: maps (npz), pseudo label (PNG), quality (npz) and overlay (JPEG)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rca_lightning.data.classes import MAX_CLASSES, voc_palette
from rca_lightning.data.visualization import overlay_mask
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.io.atomic import write_atomically
from rca_lightning.io.npz import read_npz
from rca_lightning.pseudo_labels.generator import IntermediateLabel, PseudoLabelGenerator
from rca_lightning.pseudo_labels.labels import check_maps
from rca_lightning.pseudo_labels.quality import LabelQuality, label_quality
from rca_lightning.rca.inference import ClassMaps

_REMEDY = "delete it and predict again"


def write_label_files(
    image_id: str,
    intermediate: IntermediateLabel,
    generator: PseudoLabelGenerator,
    maps: npt.NDArray[np.float16] | None,
    probabilities: npt.NDArray[np.float32],
    paths: Mapping[str, Path],
) -> None:
    """Draws a pseudo label and writes its files, each whole or not at all, the label last.

    Args:
        image_id: of the photograph.
        intermediate: scores of the photograph.
        generator: draws the label from them.
        maps: `(K, H, W)` in `[0, 1]`, before any refinement; None where they are stored elsewhere.
        probabilities: `(K,)`, image probability of each class of the label.
        paths: of "pseudo_labels" (PNG), of "cams" (npz, with the maps) or "quality" (npz, without), and perhaps of
            "overlays" (JPEG).
    """
    label = generator.draw(intermediate)
    classes, chances = torch.from_numpy(intermediate.classes), torch.from_numpy(probabilities)
    quality = label_quality(image_id, label, intermediate.evidence, classes, chances)
    arrays = {
        "classes": intermediate.classes,
        "size": np.array(label.shape, dtype=np.int64),
        "confidence": np.float32(quality.confidence),
        "coverage": np.array(quality.coverage, dtype=np.float32),
        "probabilities": np.array(quality.probabilities, dtype=np.float32),
        "ignored": np.float32(quality.ignored),
    }
    if maps is not None:
        arrays["maps"] = maps
    path = paths["quality" if maps is None else "cams"]
    write_atomically(path, lambda file: np.savez_compressed(file, **arrays))
    if "overlays" in paths:
        picture = (intermediate.picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)  # (3, H, W) -> (H, W, 3)
        write_overlay_file(picture, label, paths["overlays"])
    write_mask_file(label, paths["pseudo_labels"])


def write_mask_file(label: Tensor, path: Path, *, notes: Mapping[str, str] | None = None) -> None:
    """Writes a label image `(H, W)` uint8 as PNG with the VOC palette, whole or not at all.

    Args:
        label: the label image.
        path: the file.
        notes: texts to store in the file, by keyword.
    """
    picture = Image.fromarray(label.numpy())
    picture.putpalette(voc_palette().flatten().tolist())
    texts = PngInfo()
    for keyword, text in (notes or {}).items():
        texts.add_text(keyword, text)
    write_atomically(path, lambda file: picture.save(file, format="PNG", pnginfo=texts))


def write_overlay_file(picture: npt.NDArray[np.uint8], label: Tensor, path: Path) -> None:
    """Writes a label image `(H, W)` over its photograph `(H, W, 3)` as JPEG, whole or not at all."""
    drawn = Image.fromarray(overlay_mask(picture, label.numpy()))
    write_atomically(path, lambda file: drawn.save(file, format="JPEG", quality=90))


def read_qualities(files: Iterable[tuple[str, Path]], *, num_classes: int = MAX_CLASSES) -> list[LabelQuality]:
    """Reads the qualities that `write_label_files` stored in npz files; maps are not read.

    Args:
        files: image ids and files.
        num_classes: foreground classes `L`.

    Raises:
        DatasetNotFoundError: if a file is not there.
        DataError: if a file is damaged or of another kind.
    """
    return [_read_quality(image_id, path, num_classes) for image_id, path in files]


def _read_quality(image_id: str, path: Path, num_classes: int) -> LabelQuality:
    most = {"confidence": 1, "ignored": 1, **dict.fromkeys(("classes", "coverage", "probabilities"), num_classes)}
    try:
        arrays = read_npz(path, most, remedy=_REMEDY)
    except DataError as error:
        raise DataError(f"{path}: no quality could be read ({error.__cause__ or error}); {_REMEDY}") from error
    classes, coverage, probabilities = arrays["classes"], arrays["coverage"], arrays["probabilities"]
    ends = (arrays["confidence"], arrays["ignored"])
    if (
        any(number.shape != () for number in ends)
        or not classes.ndim == 1 == len({classes.shape, coverage.shape, probabilities.shape})
        or not all(0 <= index < num_classes for index in classes.tolist())
        or not all(np.isfinite(values).all() for values in (*ends, coverage, probabilities))
    ):
        raise DataError(f"{path}: no quality could be read (its arrays do not fit each other); {_REMEDY}")
    return LabelQuality(
        image_id=image_id,
        confidence=float(arrays["confidence"]),
        classes=tuple(int(index) for index in classes),
        coverage=tuple(coverage.tolist()),
        probabilities=tuple(probabilities.tolist()),
        ignored=float(arrays["ignored"]),
    )


_MAPS_REMEDY = "let rca predict make them anew"
_SMALL = 1 << 22  # numbers; maps of so few are read, and their size is named if it is wrong


def read_maps(path: Path, *, size: tuple[int, int], num_classes: int) -> ClassMaps:
    """Reads maps that `PseudoLabelWriter` has written, with the probabilities of their classes.

    Args:
        path: `cams/<id>.npz`.
        size: height and width of the photograph, which bound what is unpacked.
        num_classes: foreground classes `L`.

    Raises:
        DatasetNotFoundError: if there is no such file.
        DataError: if the file is damaged or not one of these, or of a photograph of another size.
    """
    most = {"maps": max(num_classes * size[0] * size[1], _SMALL), "classes": num_classes, "probabilities": num_classes}
    arrays = read_npz(path, most, remedy=_MAPS_REMEDY)
    maps, classes, probabilities = arrays["maps"], arrays["classes"], arrays["probabilities"]
    if maps.ndim != 3 or classes.shape != maps.shape[:1] or probabilities.shape != maps.shape[:1]:
        raise DataError(f"{path}: {maps.shape} maps of {classes.shape} classes; {_MAPS_REMEDY}")
    if maps.shape[1:] != size:
        raise DataError(f"{path}: maps of {maps.shape[1:]} cells for a photograph of {size} pixels; {_MAPS_REMEDY}")
    ascending = bool((np.diff(classes, prepend=-1, append=num_classes) > 0).all())
    if classes.dtype != np.int64 or not ascending:
        raise DataError(f"{path}: classes {classes.tolist()[:8]} of {num_classes}; {_MAPS_REMEDY}")
    chances = _floats(probabilities)
    if not bool(((chances >= 0) & (chances <= 1)).all()):
        raise DataError(f"{path}: probabilities {chances.tolist()[:8]} outside [0, 1]; {_MAPS_REMEDY}")
    values = torch.from_numpy(_floats(maps))
    try:
        check_maps(values)
    except ArgumentError as error:
        raise DataError(f"{path}: {error}; {_MAPS_REMEDY}") from error
    return ClassMaps(values, torch.from_numpy(classes), torch.from_numpy(chances))


def _floats(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite, and are refused
        return values.astype(np.float32)
