"""Reads a folder of label images with the photographs that they belong to, one pair after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.images import check_same_size, image_size, open_image, read_mask
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.exchange.polygons import Polygon, trace_polygons
from rca_lightning.io.listing import IMAGE_EXTENSIONS, first_few, list_by_stem, list_images, require_folder

_PNG = frozenset({".png"})


@dataclass(frozen=True)
class LabelImage:
    """Label image of one photograph.

    Attributes:
        image_id: name of both files without their ending.
        photograph: its file.
        labels: `(H, W)`, 0 background, 1..L classes, 255 neither.
    """

    image_id: str
    photograph: Path
    labels: npt.NDArray[np.uint8]

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the photograph, turned upright."""
        height, width = self.labels.shape
        return height, width

    def regions(self) -> Iterator[tuple[int, npt.NDArray[np.bool_]]]:
        """Value and region `(H, W)` of each class that occurs."""
        for value in np.flatnonzero(np.bincount(self.labels.ravel())).tolist():  # np.unique sorts or hashes them all
            if value not in {0, IGNORE_INDEX}:
                yield value, self.labels == value

    def polygons(self) -> Iterator[tuple[int, Polygon]]:
        """Value and outline of each connected component of each class."""
        for value, region in self.regions():
            for polygon in trace_polygons(region):
                yield value, polygon


class LabelFolder:
    """Lists label images `<id>.png` with the photographs of the same names; pixels are read on iteration, one by one.

    Args:
        labels: folder of the label images.
        images: folder of the photographs; those without a label image are left out.
        class_names: the L foreground classes in the order of their values.

    Attributes:
        without_label: number of photographs without a label image.
        ignored_pixels: pixels of value 255 in the label images that were read.
        ignored_in: number of label images that had some.

    Raises:
        DatasetNotFoundError: one of the folders is missing, or the photograph of a label image.
        DataError: no label image, or an image that is no PNG; on iteration, a file that is damaged or none, a value
            without a class, or another size than that of the photograph.
    """

    def __init__(self, labels: Path, images: Path, class_names: Sequence[str]) -> None:
        require_folder(labels, what="labels", remedy="give the folder of the label images, such as pseudo_labels")
        require_folder(images, what="images", remedy="give the folder of the photographs")
        self._num_classes = len(class_names)
        self._labels = list_by_stem(labels, _PNG)
        names = os.listdir(labels)  # noqa: PTH208 - names of 100,000 files, not paths
        others = [name for name in names if _is_other_image(name)]
        if others:
            raise DataError(f"labels={str(labels)!r}: label images are PNG files, {first_few(sorted(others))} is not")
        if not self._labels:
            raise DataError(f"labels={str(labels)!r}: no label image <id>.png in it; give the folder that holds them")
        photographs = list_images(images)
        missing = sorted(self._labels.keys() - photographs.keys())
        if missing:
            raise DatasetNotFoundError(
                f"images={str(images)!r}: no photograph for {len(missing)} of {len(self._labels)} label images, of the "
                f"ids {first_few(missing)}; give the folder that holds them"
            )
        self._photographs = {image_id: photographs[image_id] for image_id in self._labels}
        self.without_label = len(photographs) - len(self._labels)
        self.ignored_pixels = 0
        self.ignored_in = 0

    def __len__(self) -> int:
        return len(self._labels)

    def __iter__(self) -> Iterator[LabelImage]:
        self.ignored_pixels = self.ignored_in = 0
        for image_id, path in self._labels.items():
            with open_image(path) as image:
                if image.format != "PNG":
                    raise DataError(f"{path}: a {image.format} file by its content; save the label image as PNG")
            labels = read_mask(path, num_classes=self._num_classes)
            photograph = self._photographs[image_id]
            size = (labels.shape[0], labels.shape[1])
            check_same_size(size=image_size(photograph), other=size, image_path=photograph, other_name=str(path))
            ignored = int((labels == IGNORE_INDEX).sum())
            self.ignored_pixels += ignored
            self.ignored_in += ignored > 0
            yield LabelImage(image_id, photograph, labels)


def _is_other_image(name: str) -> bool:
    ending = os.path.splitext(name)[1].lower()  # noqa: PTH122
    return ending in IMAGE_EXTENSIONS - _PNG and not name.startswith(".")
