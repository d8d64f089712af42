"""Opens the data set that the arguments describe and selects the records of each stage."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.arguments import check_arguments
from rca_lightning.data.classes import VOC_CLASSES, read_class_file
from rca_lightning.data.coco import COCOSource, find_categories
from rca_lightning.data.folder import FolderSource
from rca_lightning.data.records import RecordTable, Source
from rca_lightning.data.voc import VOCSource
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError
from rca_lightning.io.download import cache_folder
from rca_lightning.io.listing import first_few, list_images, locate, require_folder

_log = logging.getLogger(__name__)
_warn = rank_zero_only(_log.warning)
_note = rank_zero_only(_log.info)


def training_records(
    source: Source, split: str, *, with_masks: bool, mask_dir: str | None, saliency_dir: str | None
) -> RecordTable:
    """Return the images to train on: those with at least one tag.

    With a `mask_dir`, a folder of index masks instead of the data set's own, every image must have one.

    Raises:
        DataError: no image left, tags unknown, or masks missing from a folder that was asked for.
        DatasetNotFoundError: a folder is missing.
    """
    records = RecordTable.of(source.records(split, with_masks=with_masks and mask_dir is None))
    counts = _tag_counts(records, split, needs_all=source.needs_all_tags)
    if not (counts > 0).any():
        raise DataError(f"split {split!r}: none of its {len(records)} images has a tag; there is nothing to train on")
    tagged = records.take(counts > 0) if (counts <= 0).any() else records
    for left_out, why in ((counts == 0, "no tag"), (counts < 0, "unknown tags")):
        if left_out.any():
            without = records.take(left_out).image_ids
            _warn("split %r: %d images left out of training, %s: %s", split, len(without), why, first_few(without))
    if with_masks:
        tagged = _with_masks(tagged, source, mask_dir)
        if mask_dir is not None:
            _require(tagged, tagged.has_mask, split, what="a mask", remedy="add them, or give another train_mask_dir")
    tagged = _with_saliency(tagged, source, split, saliency_dir)
    if saliency_dir is not None and not tagged.has_saliency.any():
        raise DataError(
            f"saliency_dir={saliency_dir!r}: no map for any of the {len(tagged)} training images, such as "
            f"{tagged[0].image_id}; name the maps like the images"
        )
    _note("split %r: %d images to train on", split, len(tagged))
    return tagged


def evaluation_records(
    source: Source,
    split: str,
    *,
    mask_dir: str | None,
    saliency_dir: str | None,
    need_masks: bool,
    need_tags: bool,
) -> RecordTable:
    """Return all images of a split, with tags or without; images without a mask are logged unless masks are needed.

    Raises:
        DataError: no image, or masks or tags are missing that are needed.
        DatasetNotFoundError: a folder is missing.
    """
    draws = mask_dir is None  # else masks come as files
    records = RecordTable.of(source.records(split, with_masks=draws, need_masks=draws and need_masks))
    if not records:
        raise DataError(f"split {split!r}: no image in it")
    if need_tags:
        unknown = records.take(_tag_counts(records, split, needs_all=source.needs_all_tags) < 0).image_ids
        if unknown:
            shown = first_few(unknown)
            _warn("split %r: predicted tags stand in for %d images of unknown tags: %s", split, len(unknown), shown)
    records = _with_masks(records, source, mask_dir, required=need_masks)
    has_mask = records.has_mask
    if need_masks:
        remedy = "scores need masks: add them, give mask_dir, or name another eval_split"
        _require(records, has_mask, split, what="a mask", remedy=remedy)
    elif 0 < (missing := int((~has_mask).sum())) < len(records):
        _warn("split %r: %d of %d images have no mask, so they get no score", split, missing, len(records))
    return _with_saliency(records, source, split, saliency_dir)


def _with_masks(records: RecordTable, source: Source, mask_dir: str | None, *, required: bool = False) -> RecordTable:
    folder = source.default_mask_dir() if mask_dir is None else locate(mask_dir, source.root)
    if folder is None:
        return records
    if mask_dir is not None or required:
        require_folder(folder, what="mask_dir", remedy="give the folder of the index masks")
    return records.with_mask_files(list_images(folder, {".png"}) if folder.is_dir() else {})


def _with_saliency(records: RecordTable, source: Source, split: str, saliency_dir: str | None) -> RecordTable:
    if saliency_dir is None:
        return records
    folder = locate(saliency_dir, source.root)
    require_folder(folder, what="saliency_dir", remedy="give the folder of the saliency maps")
    records = records.with_saliency(list_images(folder))
    if missing := int((~records.has_saliency).sum()):
        _note("split %r: %d of %d images have no saliency map in %s", split, missing, len(records), folder)
    return records


def check_split(source: Source, argument: str, split: str) -> None:
    """Raise `ArgumentError`, which names the argument, for a split that the data set does not have."""
    known = source.splits()
    if split not in known:
        remedy = f"no such split; give one of {', '.join(known)}, or its list by split_files"
        raise ArgumentError(argument, split, remedy)


def _tag_counts(records: RecordTable, split: str, *, needs_all: bool) -> npt.NDArray[np.int64]:
    """Number of tags of each image, -1 where they are unknown, which is an error if all are, or if all are needed."""
    remedy = "give tags_file (a line an image: id tag tag), or leave the images out by split_files"
    counts = records.tag_counts
    if len(records) and (counts < 0).all():
        raise DatasetNotFoundError(f"tags_file: split {split!r} has no tags at all; {remedy}")
    if needs_all:
        _require(records, counts >= 0, split, what="tags", remedy=remedy)
    return counts


def _require(records: RecordTable, has: npt.NDArray[np.bool_], split: str, *, what: str, remedy: str) -> None:
    if not has.all():
        missing = records.take(~has).image_ids
        raise DataError(
            f"split {split!r}: {len(missing)} of {len(records)} images are without {what}: "
            f"{first_few(missing)}; {remedy}"
        )


DatasetName = Literal["voc2012", "coco2014", "coco2017", "folder", "synthetic"]
"""The data sets that can be opened."""

# Splits that a data set may have without a list of the user's.
_OFFICIAL_SPLITS = {
    "voc2012": {"train", "val", "trainval", "trainaug", "test"},
    "coco2014": {"train", "val"},
    "coco2017": {"train", "val"},
    "folder": {"train", "val", "test", "all"},
    "synthetic": {"train", "val"},
}

# Arguments that mean something for some data sets only: silence about the others would hide a mistake.
_SERVED_BY = {
    "class_file": {"folder"},
    "image_dir": {"folder", "coco2014", "coco2017"},
    "annotation_file": {"coco2014", "coco2017"},
    "tags_file": {"voc2012", "coco2014", "coco2017", "folder"},
}


@check_arguments
@dataclass(frozen=True)
class SourceOptions:
    """Where a data set lies and how it is read; `WSSSDataModule` documents each argument.

    Raises:
        ArgumentError: an unknown data set, a missing root, an argument another data set has, or a list of a split that
            nobody asks for while a split that is asked for has none.
    """

    dataset: DatasetName
    root: str | Path | None = None
    splits: tuple[str, ...] = ("train", "val")  # of training, evaluation and prediction
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
        if self.root is None and self.dataset != "synthetic":
            raise ArgumentError("root", None, f"give the folder of the data set {self.dataset!r}")
        for name, served in _SERVED_BY.items():
            value = getattr(self, name)
            if value is not None and self.dataset not in served:
                raise ArgumentError(
                    name, value, f"has no meaning for dataset={self.dataset!r}, only for {', '.join(sorted(served))}"
                )
        # Several lists may wait for their turn, but then those in use have one: else a name is misspelt.
        unknown = set(self.split_files).difference(self.splits, _OFFICIAL_SPLITS[self.dataset])
        if unknown and not set(self.splits) <= set(self.split_files):
            asked = ", ".join(dict.fromkeys(self.splits))
            remedy = f"{', '.join(sorted(unknown))}: no split that is asked for (those are {asked}); correct the name"
            raise ArgumentError("split_files", dict(self.split_files), remedy)

    @property
    def folder(self) -> Path:
        """The root, or the cache folder of the synthetic images."""
        if self.root is not None:
            return Path(self.root).expanduser()
        return cache_folder() / "synthetic"

    def class_names(self) -> tuple[str, ...]:
        """Return the foreground classes in the order of their mask values.

        Of COCO they are the categories of the annotations, and those of COCO where there are no annotations yet.
        """
        if self.dataset == "folder":
            return read_class_file(locate(self.class_file or "classes.txt", self.folder))
        if self.dataset == "synthetic":
            from rca_lightning.data.synthetic.dataset import CLASS_NAMES

            return tuple(CLASS_NAMES)
        if self.dataset == "voc2012":
            return VOC_CLASSES
        return find_categories(self.folder, year=self._year, annotation_file=self.annotation_file, splits=self.splits)[
            0
        ].names

    def coco_ids(self, split: str) -> tuple[tuple[int, ...], dict[str, int | str]] | None:
        """Return the category id of each class, and the image ids of a split by name; None if not in COCO's form."""
        if self.dataset not in {"coco2014", "coco2017"}:
            return None
        source = self.open()
        assert isinstance(source, COCOSource)
        return source.categories.ids, source.image_ids(split)

    def prepare(self) -> Path:
        """Generate the synthetic images unless they are complete; return the root of the data set."""
        if self.dataset != "synthetic":
            return self.folder
        from rca_lightning.data.synthetic.dataset import generate

        return generate(
            self.folder,
            seed=self.synthetic_seed,
            train_images=self.synthetic_train_images,
            val_images=self.synthetic_val_images,
            image_size=self.synthetic_image_size,
        )

    def open(self) -> Source:
        """Return the data set.

        Raises:
            DatasetNotFoundError: a folder or file is missing.
            DataError: a file cannot be used.
        """
        root = self.prepare()
        lists: Any = {"split_files": self.split_files, "tags_file": self.tags_file}
        if self.dataset == "folder":
            return FolderSource(root, classes=self.class_names(), image_dir=self.image_dir, **lists)
        if self.dataset in {"coco2014", "coco2017"}:
            files: Any = {"annotation_file": self.annotation_file, "image_dir": self.image_dir}
            return COCOSource(root, year=self._year, splits=self.splits, **files, **lists)
        return VOCSource(root, classes=self.class_names(), **lists)

    @property
    def _year(self) -> Literal[2014, 2017]:
        return 2014 if self.dataset == "coco2014" else 2017
