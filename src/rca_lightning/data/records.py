"""What is known of one image before its pixels are read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.tagfile import Tags


@dataclass(frozen=True)
class Record:
    """One image of a split.

    Attributes:
        image_id: name of the image file without its ending.
        image: the image file.
        tags: class indices present; empty if none of the classes, None if nobody said.
        mask: index mask file or annotated objects to draw it from; None without a mask.
        saliency: saliency map file; None without one.
    """

    image_id: str
    image: Path
    tags: Tags | None = None
    mask: Path | CocoShapes | None = None
    saliency: Path | None = None


class Source(Protocol):
    """A data set on disk: gives the records of a split."""

    root: Path

    def records(self, split: str, *, with_masks: bool) -> Sequence[Record]:
        """Return the images of a split, sorted as the split lists them.

        Args:
            split: name of the split.
            with_masks: whether masks that the data set itself brings are wanted.
        """
        ...

    def default_mask_dir(self) -> Path | None:
        """Return the folder of mask files where none is given; None if masks do not come as files."""
        ...
