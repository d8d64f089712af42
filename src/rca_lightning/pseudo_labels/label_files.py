"""The files of one photograph: its maps, its pseudo label, and a picture of it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from rca_lightning.atomic import write_atomically
from rca_lightning.data.palette import voc_palette
from rca_lightning.errors import DataError
from rca_lightning.pseudo_labels.making import HalfMade, LabelMaker
from rca_lightning.pseudo_labels.quality import LabelQuality, label_quality
from rca_lightning.visualization import overlay_mask


def write_label_files(
    image_id: str,
    made: HalfMade,
    maker: LabelMaker,
    maps: npt.NDArray[np.float16] | None,
    probabilities: npt.NDArray[np.float32],
    paths: Mapping[str, Path],
) -> None:
    """Finish a pseudo label and write its files, each whole or not at all, the label last.

    Args:
        image_id: of the photograph.
        made: first half of the label.
        maker: makes the second half.
        maps: `(K, H, W)` in `[0, 1]`, before any refinement; None where they are stored elsewhere.
        probabilities: `(K,)`, image probability of each class of the label.
        paths: of "pseudo_labels" (PNG), of "cams" (npz, with the maps) or "quality" (npz, without), and perhaps of
            "overlays" (JPEG).
    """
    label = maker.finish(made)
    classes, chances = torch.from_numpy(made.classes), torch.from_numpy(probabilities)
    quality = label_quality(image_id, label, made.evidence, classes, chances)
    arrays = {
        "classes": made.classes,
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
        picture = (made.picture.transpose(1, 2, 0) * 255).round().astype(np.uint8)  # (3, H, W) -> (H, W, 3)
        write_overlay_file(picture, label, paths["overlays"])
    write_mask_file(label, paths["pseudo_labels"])


def write_mask_file(label: Tensor, path: Path, *, notes: Mapping[str, str] | None = None) -> None:
    """Write a label image `(H, W)` uint8 as PNG with the VOC palette, whole or not at all.

    Args:
        label: the label image.
        path: the file.
        notes: what else the file shall say, by keyword.
    """
    picture = Image.fromarray(label.numpy())
    picture.putpalette(voc_palette().flatten().tolist())
    texts = PngInfo()
    for keyword, text in (notes or {}).items():
        texts.add_text(keyword, text)
    write_atomically(path, lambda file: picture.save(file, format="PNG", pnginfo=texts))


def write_overlay_file(picture: npt.NDArray[np.uint8], label: Tensor, path: Path) -> None:
    """Write a label image `(H, W)` over its photograph `(H, W, 3)` as JPEG, whole or not at all."""
    drawn = Image.fromarray(overlay_mask(picture, label.numpy()))
    write_atomically(path, lambda file: drawn.save(file, format="JPEG", quality=90))


def read_qualities(files: Iterable[tuple[str, Path]]) -> list[LabelQuality]:
    """What `write_label_files` noted of each image id and npz file; their maps are not read.

    Raises:
        DataError: if a file is damaged or of another kind.
    """
    return [_read_quality(image_id, path) for image_id, path in files]


def _read_quality(image_id: str, path: Path) -> LabelQuality:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return LabelQuality(
                image_id=image_id,
                confidence=float(arrays["confidence"]),
                classes=tuple(arrays["classes"].tolist()),
                coverage=tuple(arrays["coverage"].tolist()),
                probabilities=tuple(arrays["probabilities"].tolist()),
                ignored=float(arrays["ignored"]),
            )
    except Exception as error:  # zip, zlib and numpy each have errors of their own for a damaged file
        raise DataError(f"{path}: no quality could be read ({error}); delete it and predict again") from error
