"""Reads COCO 2014 and 2017 instances as tags and semantic masks."""

from __future__ import annotations

import json
import logging
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.arguments import check_arguments
from rca_lightning.data.classes import MAX_CLASSES, ClassIndex, check_mask_classes
from rca_lightning.data.coco_categories import COCO, Categories, read_categories
from rca_lightning.data.coco_index import IndexSources, kept_records
from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.data.tag_files import read_id_list, read_tag_file, warn_unlisted
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, RCAError
from rca_lightning.io.listing import check_image_id, first_few, list_images, locate, require_folder

_MAX_SIDE = 2**31 - 1  # what a table of records holds; it is compared with the photograph's before anything is drawn
_Year = Literal[2014, 2017]
_warn = rank_zero_only(logging.getLogger(__name__).warning)


@check_arguments
def find_categories(
    root: Path, *, year: _Year, annotation_file: str | None, splits: Sequence[str]
) -> tuple[Categories, Path | None]:
    """Read the categories of the first of some splits whose annotations are there, and the file they come from.

    Without any annotations they are those of COCO.

    Raises:
        DatasetNotFoundError: `annotation_file` is missing.
        DataError: the file cannot be used.
    """
    if annotation_file is not None:
        path = locate(annotation_file, root)
        if not path.is_file():
            raise DatasetNotFoundError(f"annotation_file={annotation_file!r}: no such file; give an instances JSON")
        return read_categories(path), path
    for split in splits:
        part = _part(split, year)
        path = root / "annotations" / f"instances_{part}.json"
        if part is not None and path.is_file():
            return read_categories(path), path
    return COCO, None


def _part(split: str, year: _Year) -> str | None:
    return next((f"{part}{year}" for part in ("train", "val") if split.startswith(part)), None)


class COCOSource:
    """Images with annotations in COCO's form: an image has the tag of every category with an annotation in it.

    The classes are the categories of the annotations in the order of their ids, which of COCO are its 80. Objects of
    `_background_` and `__ignore__`, as labelme writes them, give no tag and are drawn as background and void.

    Args:
        root: the folder with `annotations` and the image folders (`train2017` or `images/train2017`).
        year: which edition.
        splits: the classes are those of the first of these splits whose annotations are there; all others must have
            the same.
        split_files: split name to a file of ids (image file names without ending) that restricts it. The
            name of a split begins with the part it belongs to: `train`, `train_small`, `val`. With an
            `annotation_file`, other splits than these there are only if none is given.
        annotation_file: instances JSON used for every split instead of the official one.
        image_dir: folder of the images used for every split instead of the official one.
        tags_file: text or CSV file whose tags replace those of the annotations for the images it lists.

    Raises:
        DatasetNotFoundError: no such folder or file.
        DataError: the tag file or the categories cannot be used.

    Source: https://cocodataset.org/#format-data
    """

    needs_all_tags = True

    @check_arguments
    def __init__(
        self,
        root: Path,
        *,
        year: _Year,
        splits: Sequence[str] = ("train", "val"),
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
        self.categories, self._categories_from = find_categories(
            root, year=year, annotation_file=annotation_file, splits=splits
        )
        self._tags_file = tags_file
        classes = ClassIndex(self.categories.names)
        self._given_tags = read_tag_file(locate(tags_file, root), classes) if tags_file else {}

    def default_mask_dir(self) -> Path | None:
        """None: masks are drawn from the annotations."""
        return None

    def splits(self) -> tuple[str, ...]:
        """Return the parts and the lists; with a single file for all splits, only the lists if there are any."""
        parts = () if self._split_files and self._annotation_file is not None else ("train", "val")
        return (*dict.fromkeys((*parts, *self._split_files)),)

    def image_ids(self, split: str) -> dict[str, int | str]:
        """Return the `id` of each image of the annotations of a split by its name without ending."""
        path = self._annotations_of(split)
        with _format_errors(path):
            return {name: image["id"] for name, image in _images(_read_instances(path)["images"], path).items()}

    def records(self, split: str, *, with_masks: bool, need_masks: bool = False) -> RecordTable:
        """Return the images of a split in the order of their ids, those without any object included.

        They are read from the annotations once and kept in the cache folder, see `kept_records`.

        Raises:
            ArgumentError: a split that is no part of COCO.
            DatasetNotFoundError: annotations or images are missing.
            DataError: the annotations cannot be used, or name images that are not there; with `need_masks`, a field
                is missing that masks are drawn from.
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
            categories=self.categories,
        )
        table = kept_records(sources, lambda: _build(sources, split, list_file, self._categories_from))
        if self._tags_file is not None:
            warn_unlisted(self._given_tags, set(table.image_ids), tags_file=self._tags_file, where=f"split {split!r}")
        if need_masks and not table.has_mask.all():
            self._explain(path, [table.image_ids[row] for row in np.flatnonzero(~table.has_mask)])
        return table

    def _explain(self, path: Path, without: Sequence[str]) -> None:
        """Raise the error that says why masks of these images cannot be drawn."""
        check_mask_classes(len(self.categories.ids))
        with _format_errors(path):
            content = _read_instances(path)
            images = _images(content["images"], path)
            objects = _objects(content["annotations"], images, self.categories, path)
            for image in (images[name] for name in without):
                if lacking := _lacking(image, objects.get(image["id"], [])):
                    raise DataError(f"{path}: {len(without)} images have no mask: {lacking}")

    def _part(self, split: str) -> str:
        if (part := _part(split, self._year)) is not None:
            return part
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


def _build(sources: IndexSources, split: str, list_file: Path | None, categories_from: Path | None) -> RecordTable:
    with _format_errors(sources.annotations):
        return _table(sources, split, list_file, categories_from)


@contextmanager
def _format_errors(path: Path) -> Iterator[None]:
    """Turn what parsing raises for a file of another form into one error that names it."""
    try:
        yield
    except RCAError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError) as error:
        raise DataError(
            f"{path}: not a COCO instances file ({type(error).__name__}: {error}); fetch the annotations anew"
        ) from error


def _table(sources: IndexSources, split: str, list_file: Path | None, categories_from: Path | None) -> RecordTable:
    path, folder = sources.annotations, sources.folder
    content = _read_instances(path)
    categories = Categories.parse(content["categories"], path)
    if difference := sources.categories.difference(categories):
        raise DataError(
            f"{categories_from or 'COCO'} and {path} have different categories: {difference}; "
            "give both files the same ids and names"
        )
    images = _images(content["images"], path)
    objects = _objects(content["annotations"], images, categories, path)
    present = list_images(folder)
    wanted = images.keys() if sources.chosen is None else sources.chosen
    if unknown := sorted(wanted - images.keys()):
        raise DataError(f"{list_file}: not in {path}: {first_few(unknown)}; take them out of the list")
    absent = [image_id for image_id in images if image_id in wanted and image_id not in present]
    if absent:
        raise DataError(
            f"{path}: {len(absent)} of the images of split {split!r} are not in {folder}: {first_few(absent)}; "
            "add them or restrict the split by split_files"
        )
    index_of = {category: index for index, category in enumerate(categories.ids)}
    value_of = {category: index + 1 for category, index in index_of.items()} | dict(categories.reserved)
    draws = sources.with_masks and len(categories.ids) <= MAX_CLASSES
    records, without = [], []
    for image_id, image in images.items():
        if image_id in wanted:
            shown = objects.pop(image["id"], [])
            tags = tuple(sorted({index_of[each.category] for each in shown if each.category in index_of}))
            shapes = None
            if draws and (lacking := _lacking(image, shown)):
                without.append(lacking)
            elif draws:
                shapes = _shapes(image, [(value_of[each.category], each.segmentation) for each in shown], path)
            records.append(Record(image_id, present[image_id], sources.tags.get(image_id, tags), shapes))
    if without:
        _warn("%s: no mask for %d of %d images: %s", path, len(without), len(records), without[0])
    return RecordTable.of(records)


class _Object(NamedTuple):
    category: int
    segmentation: Any  # None without one
    number: int  # place in the file
    own_id: Any  # None without one

    @property
    def name(self) -> str:
        return f"entry {self.number} of 'annotations'" if self.own_id is None else f"annotation {self.own_id!r}"


def _read_instances(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_bytes())
    for field in ("images", "annotations", "categories"):
        if field not in content:
            remedy = "give an instances file, or dataset='folder' for images without annotations"
            raise DataError(f"{path}: not a COCO instances file (no {field!r} in it); {remedy}")
    return dict(content)


def _images(entries: Sequence[Any], path: Path) -> dict[str, Any]:
    """The image entries by file stem, in the order of their ids."""
    ids: set[Any] = set()
    images: dict[str, Any] = {}
    for number, entry in enumerate(entries):
        for field in ("id", "file_name"):
            if entry.get(field) is None:
                raise DataError(f"{path}: entry {number} of 'images' has no {field!r}; add it")
        file_name = check_image_id(entry["file_name"], where=str(path))
        if entry["id"] in ids:
            raise DataError(f"{path}: image id {entry['id']!r} belongs to two images; give each its own")
        ids.add(entry["id"])
        stem = Path(file_name).stem
        if stem in images:
            both = f"{images[stem]['file_name']!r} and {file_name!r}"
            raise DataError(f"{path}: the images {both} would share the id {stem!r}; rename one of them")
        images[stem] = entry
    return dict(sorted(images.items(), key=lambda item: item[1]["id"]))


def _objects(
    entries: Sequence[Any], images: Mapping[str, Any], categories: Categories, path: Path
) -> dict[Any, list[_Object]]:
    """The annotations by image id.

    Raises:
        DataError: one without `image_id` or `category_id`, of an image or a category that is not there, or with an id
            that another one has; each kind with its first few.
    """
    image_ids = {image["id"] for image in images.values()}
    category_ids = {*categories.ids, *(number for number, _ in categories.reserved)}
    objects: dict[Any, list[_Object]] = defaultdict(list)
    of_no_image: list[Any] = []
    of_no_category: list[Any] = []
    twice: list[Any] = []
    seen: set[Any] = set()
    for number, entry in enumerate(entries):
        own = entry.get("id")
        for field in ("image_id", "category_id"):
            if field not in entry:
                raise DataError(f"{path}: {_Object(0, None, number, own).name} has no {field!r}; add it")
        image, category = entry["image_id"], entry["category_id"]
        if own is not None and own in seen:
            twice.append(own)
        seen.add(own)
        if image not in image_ids:
            of_no_image.append(image)
        elif category not in category_ids:
            of_no_category.append(category)
        else:
            objects[image].append(_Object(category, entry.get("segmentation") or None, number, own))
    if of_no_image:
        what = f"{len(of_no_image)} of {len(entries)} annotations have an image_id that no image has"
        raise DataError(f"{path}: {what}: {_listed(of_no_image, image_ids)}; correct the ids or take them out")
    if of_no_category:
        what = f"{len(of_no_category)} of {len(entries)} annotations have a category_id that is not in 'categories'"
        raise DataError(f"{path}: {what}: {_listed(of_no_category, category_ids)}; correct or add them")
    if twice:
        raise DataError(f"{path}: annotation ids that stand there twice: {_listed(twice, ())}; give each its own")
    return objects


def _listed(values: Sequence[Any], known: Collection[Any]) -> str:
    """The first different ones of some ids, and whether they are text where those that are known are numbers."""
    different = list(dict.fromkeys(values))
    texts = {str(value) for value in known}
    form = ""
    if all(str(value) in texts for value in different):
        kinds = {True: "text", False: "numbers"}
        form = f" (as {kinds[isinstance(different[0], str)]}, there {kinds[not isinstance(different[0], str)]})"
    return first_few(map(repr, different)) + form


def _lacking(image: Mapping[str, Any], objects: Sequence[_Object]) -> str | None:
    """What is missing to draw the mask of an image, with the remedy; None if nothing is."""
    remedy = "add it to have masks, or give mask_dir"
    for field in ("height", "width"):
        if field not in image:
            return f"image {image['file_name']!r} has no {field!r}; {remedy}"
    for each in objects:
        if each.segmentation is None:
            return f"{each.name} of image {image['file_name']!r} has no 'segmentation'; {remedy}"
    return None


def _shapes(image: Mapping[str, Any], objects: list[tuple[int, Any]], path: Path) -> CocoShapes:
    height, width = int(image["height"]), int(image["width"])
    for name, value in (("height", height), ("width", width)):
        if not 1 <= value <= _MAX_SIDE:
            raise DataError(f"{path}, image {image['file_name']!r}: {name} {value}; give that of the photograph")
    return CocoShapes.pack(objects, height=height, width=width, where=f"{path}, image {image['file_name']}")
