"""`PredictedMask`: the mask of one photograph, its maps, and ways to look at them and to store them."""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from rca_lightning.arguments import check_arguments
from rca_lightning.data.visualization import overlay_maps, overlay_mask
from rca_lightning.errors import ArgumentError
from rca_lightning.io.atomic import output_errors, write_atomically
from rca_lightning.pseudo_labels.files import write_mask_file

_ENDINGS = (".png", ".jpg", ".jpeg", ".npz")


@dataclass(frozen=True, eq=False)
class PredictedMask:
    """The mask of one photograph; shown as a picture in notebooks.

    Attributes:
        image_id: name of the file without its ending, else its number in the order given.
        photograph: `(H, W, 3)` uint8, upright.
        mask: `(H, W)` uint8: 0 background, 1..L the classes of `class_names`, 255 undecided.
        maps: float32 `(H, W)` in `[0, 1]` of each class that was tagged, predicted or drawn: class maps of localize,
            probabilities of a segmenter.
        class_names: names of all L classes; the position of a name is its mask value minus 1.
        confidence: of a segmenter, mean over the pixels of its greatest probability; `None` of class maps.
        threshold: that a class map must exceed to be drawn; `None` of a segmenter.
    """

    image_id: str
    photograph: npt.NDArray[np.uint8]
    mask: npt.NDArray[np.uint8]
    maps: Mapping[str, npt.NDArray[np.float32]]
    class_names: tuple[str, ...]
    confidence: float | None = None
    threshold: float | None = None
    _redraw: Callable[[float], npt.NDArray[np.uint8]] | None = field(default=None, repr=False)

    @property
    def classes(self) -> list[str]:
        """Names of the classes in the mask, in the order of their mask values."""
        return [self.class_names[value - 1] for value in np.unique(self.mask) if 1 <= value <= len(self.class_names)]

    def with_threshold(self, threshold: float) -> PredictedMask:
        """Draws the mask anew from the same maps; the network does not run again.

        Args:
            threshold: in `[0, 1]`, that a class map must exceed to be drawn.

        Raises:
            ArgumentError: for a number out of its range, and for a segmenter, which has no threshold.
        """
        if self._redraw is None:
            raise ArgumentError("threshold", threshold, "a segmenter takes the most probable label; leave it out")
        return replace(self, mask=self._redraw(threshold), threshold=threshold)

    @check_arguments
    def overlay(self, of: Literal["mask", "maps"] = "mask", *, opacity: float = 0.6) -> Image.Image:
        """Lays the mask, or the maps, over the photograph in the colours of VOC.

        Args:
            of: what to lay over it.
            opacity: of the mask, in `[0, 1]`.
        """
        if not 0 <= opacity <= 1:
            raise ArgumentError("opacity", opacity, "give a number in [0, 1]")
        if of == "mask":
            return Image.fromarray(overlay_mask(self.photograph, self.mask, opacity))
        arrays = self._arrays()
        maps, classes = torch.from_numpy(arrays["maps"]), torch.from_numpy(arrays["classes"])
        return Image.fromarray(overlay_maps(self.photograph, maps, classes))

    def save(self, path: str | Path) -> Path:
        """Writes a file, whole or not at all.

        Args:
            path: `.png`: the mask as `rca predict` writes it, in mode P; `.jpg`: the overlay; `.npz`: `maps` float16
                `(K, H, W)`, `classes` int64 `(K,)` and their `names`, to be read without pickle. Without an ending it
                is a folder, which gets the mask as `<image_id>.png`.

        Returns:
            The file that was written.

        Raises:
            ArgumentError: for another ending.
            OutputError: if it cannot be written.
        """
        target = Path(path).expanduser()
        if target.is_dir() or not target.suffix:
            target = target / f"{self.image_id}.png"
        ending = target.suffix.lower()
        if ending not in _ENDINGS:
            raise ArgumentError("path", str(path), f"give a folder or a name that ends in {', '.join(_ENDINGS)}")
        with output_errors("path", target):
            if ending == ".png":
                write_mask_file(torch.from_numpy(self.mask), target)
            elif ending == ".npz":
                arrays: dict[str, Any] = self._arrays()
                write_atomically(target, lambda file: np.savez_compressed(file, **arrays))
            else:
                write_atomically(target, lambda file: self.overlay().save(file, format="JPEG", quality=90))
        return target

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        maps = np.zeros((len(self.maps), *self.mask.shape), dtype=np.float16)
        for number, values in enumerate(self.maps.values()):
            maps[number] = values
        classes = np.array([self.class_names.index(name) for name in self.maps], dtype=np.int64)
        return {"maps": maps, "classes": classes, "names": np.array(list(self.maps), dtype=np.str_)}

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.overlay().save(file, format="PNG")
        return file.getvalue()
