"""Reads COCO 2014 and 2017 instances as tags and semantic masks."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from rca_lightning.arguments import check_arguments
from rca_lightning.data.classes import COCO_CATEGORIES, COCO_CLASSES, ClassIndex
from rca_lightning.data.coco_index import IndexSources, kept_records
from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.data.tag_files import read_id_list, read_tag_file
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, RCAError
from rca_lightning.io.listing import IMAGE_EXTENSIONS, check_image_id, first_few, list_by_stem, locate, require_folder

_MAX_SIDE = 2**31 - 1  # what a table of records holds; it is compared with the photograph's before anything is drawn
_INDEX_OF = {category: index for index, category in enumerate(COCO_CATEGORIES)}


class COCOSource:
    """The images of COCO: an image has the tag of every category with at least one annotation in it.

    Args:
        root: the folder with `annotations` and the image folders (`train2017` or `images/train2017`).
        year: which edition.
        split_files: split name to a file of ids (image file names without ending) that restricts it. The
            name of a split begins with the part it belongs to: `train`, `train_small`, `val`.
        annotation_file: instances JSON used for every split instead of the official one.
        image_dir: folder of the images used for every split instead of the official one.
        tags_file: text or CSV file whose tags replace those of the annotations for the images it lists.

    Raises:
        DatasetNotFoundError: no such folder or file.
        DataError: the tag file cannot be used.

    Source: https://cocodataset.org/#format-data
    """

    @check_arguments
    def __init__(
        self,
        root: Path,
        *,
        year: Literal[2014, 2017],
        split_files: Mapping[str, str] | None = None,
        annotation_file: str | None = None,
        image_dir: str | None = None,
        tags_file: str | None = None,
    ) -> None:
        self.root = require_folder(root, what="root", remedy="give the COCO folder, which holds annotations")
        self._year = year
        self._split_files = dict(split_files or {})
        self._annotation_file = annotation_file
        self._image_dir = image_dir
        self._given_tags = read_tag_file(locate(tags_file, root), ClassIndex(COCO_CLASSES)) if tags_file else {}

    def default_mask_dir(self) -> Path | None:
        """None: masks are drawn from the annotations."""
        return None

    def records(self, split: str, *, with_masks: bool) -> RecordTable:
        """Return the images of a split in the order of their ids, those without any object included.

        They are read from the annotations once and kept in the cache folder, see `kept_records`.

        Raises:
            ArgumentError: a split that is no part of COCO.
            DatasetNotFoundError: annotations or images are missing.
            DataError: the annotations cannot be used, or name images that are not there.
        """
        path = self._annotations_of(split)
        list_file = locate(self._split_files[split], self.root) if split in self._split_files else None
        sources = IndexSources(
            annotations=path,
            folder=self._images_of(split),
            chosen=None if list_file is None else frozenset(read_id_list(list_file)),
            tags=self._given_tags,
            with_masks=with_masks,
            year=self._year,
        )
        return kept_records(sources, lambda: _build(sources, split, list_file))

    def _part(self, split: str) -> str:
        for part in ("train", "val"):
            if split.startswith(part):
                return f"{part}{self._year}"
        raise ArgumentError(
            "split",
            split,
            "COCO has annotations for train and val only; use a name that begins with one of them, "
            "or dataset='folder' to predict on images without annotations",
        )

    def _annotations_of(self, split: str) -> Path:
        if self._annotation_file is not None:
            path = locate(self._annotation_file, self.root)
        else:
            path = self.root / "annotations" / f"instances_{self._part(split)}.json"
        if not path.is_file():
            remedy = f"unpack the annotations there, give annotation_file, or use another split than {split!r}"
            raise DatasetNotFoundError(f"{path}: no such file; {remedy}")
        return path

    def _images_of(self, split: str) -> Path:
        if self._image_dir is not None:
            return require_folder(locate(self._image_dir, self.root), what="image_dir", remedy="give the image folder")
        part = self._part(split)
        nested = self.root / "images" / part
        folder = nested if nested.is_dir() else self.root / part
        return require_folder(folder, what="root", remedy="unpack the images there")


def _build(sources: IndexSources, split: str, list_file: Path | None) -> RecordTable:
    try:
        return _table(sources, split, list_file)
    except RCAError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"{sources.annotations}: not a COCO instances file ({type(error).__name__}: {error}); "
            "fetch the annotations anew"
        ) from error


def _table(sources: IndexSources, split: str, list_file: Path | None) -> RecordTable:
    path, folder = sources.annotations, sources.folder
    images, objects = _read_instances(path)
    present = list_by_stem(folder, IMAGE_EXTENSIONS)
    wanted = images.keys() if sources.chosen is None else sources.chosen
    if unknown := sorted(wanted - images.keys()):
        raise DataError(f"{list_file}: not in {path}: {first_few(unknown)}; take them out of the list")
    absent = [image_id for image_id in images if image_id in wanted and image_id not in present]
    if absent:
        raise DataError(
            f"{path}: {len(absent)} of the images of split {split!r} are not in {folder}: {first_few(absent)}; "
            "add them or restrict the split by split_files"
        )
    records = []
    for image_id, image in images.items():
        if image_id in wanted:
            shown = objects.pop(image["id"], [])
            shapes = _shapes(image, shown, path) if sources.with_masks else None
            tags = tuple(sorted({index for index, _ in shown}))
            records.append(Record(image_id, present[image_id], sources.tags.get(image_id, tags), shapes))
    return RecordTable.of(records)


def _read_instances(path: Path) -> tuple[dict[str, Any], dict[int, list[tuple[int, Any]]]]:
    """Return the image entries by file stem in the order of their ids, and by image id (class index, segmentation)."""
    content = json.loads(path.read_bytes())
    images = {Path(image["file_name"]).stem: image for image in sorted(content["images"], key=lambda i: i["id"])}
    objects: dict[int, list[tuple[int, Any]]] = defaultdict(list)
    for annotation in content["annotations"]:
        category = annotation["category_id"]
        if category not in _INDEX_OF:
            raise DataError(f"{path}: category id {category!r} is none of the 80 of COCO; correct the annotations")
        objects[annotation["image_id"]].append((_INDEX_OF[category], annotation["segmentation"]))
    if len(images) != len(content["images"]):
        raise DataError(f"{path}: two images share a file name; rename one of them")
    for image in images.values():
        check_image_id(image["file_name"], where=str(path))
    return images, objects


def _shapes(image: Mapping[str, Any], objects: list[tuple[int, Any]], path: Path) -> CocoShapes:
    height, width = int(image["height"]), int(image["width"])
    for name, value in (("height", height), ("width", width)):
        if not 1 <= value <= _MAX_SIDE:
            raise DataError(f"{path}, image {image['file_name']!r}: {name} {value}; give that of the photograph")
    packed = [(index + 1, segmentation) for index, segmentation in objects]
    return CocoShapes.pack(packed, height=height, width=width, where=f"{path}, image {image['file_name']}")
