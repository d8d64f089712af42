"""Choosing and opening the data set that the arguments describe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from rca_lightning.data.classes import COCO_CLASSES, VOC_CLASSES, read_class_file
from rca_lightning.data.coco import COCOSource
from rca_lightning.data.folder import FolderSource
from rca_lightning.data.listing import locate
from rca_lightning.data.records import Source
from rca_lightning.data.voc import VOCSource
from rca_lightning.errors import ArgumentError
from rca_lightning.models.download import cache_folder

DatasetName = Literal["voc2012", "coco2014", "coco2017", "folder", "synthetic"]
"""The data sets that can be opened."""

# Arguments that mean something for some data sets only: silence about the others would hide a mistake.
_SERVED_BY = {
    "class_file": {"folder"},
    "image_dir": {"folder", "coco2014", "coco2017"},
    "annotation_file": {"coco2014", "coco2017"},
    "tags_file": {"voc2012", "coco2014", "coco2017", "folder"},
}


@dataclass(frozen=True)
class SourceOptions:
    """Where a data set lies and how it is read; `WSSSDataModule` documents each argument.

    Raises:
        ArgumentError: an unknown data set, a missing root, or an argument another data set has.
    """

    dataset: DatasetName
    root: str | Path | None = None
    split_files: Mapping[str, str] = field(default_factory=dict)
    tags_file: str | None = None
    class_file: str | None = None
    image_dir: str | None = None
    annotation_file: str | None = None
    synthetic_seed: int = 0
    synthetic_train_images: int = 64
    synthetic_val_images: int = 16
    synthetic_image_size: int = 128

    def __post_init__(self) -> None:
        if self.dataset not in get_args(DatasetName):
            raise ArgumentError("dataset", self.dataset, f"must be one of {', '.join(get_args(DatasetName))}")
        if self.root is None and self.dataset != "synthetic":
            raise ArgumentError("root", None, f"give the folder of the data set {self.dataset!r}")
        for name, served in _SERVED_BY.items():
            value = getattr(self, name)
            if value is not None and self.dataset not in served:
                raise ArgumentError(
                    name, value, f"has no meaning for dataset={self.dataset!r}, only for {', '.join(sorted(served))}"
                )

    @property
    def folder(self) -> Path:
        """The root, or the cache folder of the synthetic images."""
        if self.root is not None:
            return Path(self.root).expanduser()
        return cache_folder() / "synthetic"

    def class_names(self) -> tuple[str, ...]:
        """Return the foreground classes in the order of their mask values.

        Raises:
            DatasetNotFoundError: the class file of a "folder" is missing.
            DataError: it cannot be used.
        """
        if self.dataset == "folder":
            return read_class_file(locate(self.class_file or "classes.txt", self.folder))
        if self.dataset == "synthetic":
            from rca_lightning.data.synthetic import CLASS_NAMES

            return tuple(CLASS_NAMES)
        return VOC_CLASSES if self.dataset == "voc2012" else COCO_CLASSES

    def prepare(self) -> Path:
        """Generate the synthetic images unless they are complete; return the root of the data set."""
        if self.dataset != "synthetic":
            return self.folder
        from rca_lightning.data.synthetic import generate

        root: Path = generate(
            self.folder,
            seed=self.synthetic_seed,
            train_images=self.synthetic_train_images,
            val_images=self.synthetic_val_images,
            image_size=self.synthetic_image_size,
        )
        return root

    def open(self) -> Source:
        """Return the data set.

        Raises:
            DatasetNotFoundError: a folder or file is missing.
            DataError: a file cannot be used.
        """
        root = self.prepare()
        if self.dataset == "folder":
            return FolderSource(
                root,
                classes=self.class_names(),
                image_dir=self.image_dir,
                tags_file=self.tags_file,
                split_files=self.split_files,
            )
        if self.dataset in {"coco2014", "coco2017"}:
            return COCOSource(
                root,
                year=2014 if self.dataset == "coco2014" else 2017,
                split_files=self.split_files,
                annotation_file=self.annotation_file,
                image_dir=self.image_dir,
                tags_file=self.tags_file,
            )
        return VOCSource(root, split_files=self.split_files, tags_file=self.tags_file, classes=self.class_names())
