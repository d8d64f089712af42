"""Reads PASCAL VOC 2012 in the layout of its VOCdevkit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn
from xml.etree import ElementTree

from rca_lightning.data.classes import VOC_CLASSES, ClassIndex
from rca_lightning.data.records import Record
from rca_lightning.data.tag_files import Tags, read_id_list, read_tag_file, require_listed, warn_unlisted
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError
from rca_lightning.io.listing import (
    first_few,
    list_by_stem,
    list_images,
    locate,
    require_folder,
    require_regular_file,
)

MAX_BYTES = 1 << 20
"""An annotation is a few kilobytes; a file above this size is not one."""


def read_xml_tags(path: Path, classes: ClassIndex) -> Tags:
    """Return the classes of the objects in one annotation, difficult and truncated ones included.

    The parser expands no entity and refuses a document type, so a file cannot reach beyond itself
    or blow up in memory.

    Raises:
        DatasetNotFoundError: no such file.
        DataError: not well-formed XML, larger than 1 MiB, has a DOCTYPE, or names an unknown class.
    """
    require_regular_file(path, remedy="unpack the annotations anew")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); allow it or remove the file") from error
    if len(content) > MAX_BYTES:
        raise DataError(f"{path}: larger than {MAX_BYTES} bytes; that is not a VOC annotation, remove or replace it")
    parser = ElementTree.XMLParser(target=_NoDoctype(path))
    try:
        tree = ElementTree.fromstring(content, parser=parser)
    except DataError:
        raise
    except (ElementTree.ParseError, ValueError, LookupError) as error:  # the latter two for encodings
        raise DataError(f"{path}: not well-formed XML ({error}); unpack the annotations anew") from error
    names = {(item.findtext("name") or "").strip() for item in tree.findall("object")}
    return tuple(sorted(classes.lookup(name, where=str(path)) for name in names))


class _NoDoctype(ElementTree.TreeBuilder):
    """Builds the tree, but stops at a document type: entities can be declared nowhere else."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path

    def doctype(self, name: str, pubid: str | None, system: str | None) -> NoReturn:
        raise DataError(f"{self._path}: has a DOCTYPE ({name}), which VOC annotations never have; remove it")


_REMEDY = "give the folder that holds JPEGImages (VOCdevkit/VOC2012 of the VOC 2012 archive)"


class VOCSource:
    """The images of VOC 2012 and their tags.

    Tags come from `tags_file` for the images it lists, else from `Annotations/<id>.xml`, else from
    `image_labels.txt` in the root. An image with none of them has unknown tags.

    Args:
        root: the folder with `JPEGImages`, or a VOCdevkit with `VOC2012` in it.
        split_files: split name to the file with its ids; other splits are read from `ImageSets/Segmentation`.
        tags_file: text or CSV file with tags.
        classes: the class names, for data sets of another kind in this layout.

    Raises:
        DatasetNotFoundError: no `JPEGImages` there.
        DataError: a tag file cannot be used.

    Source: http://host.robots.ox.ac.uk/pascal/VOC/voc2012/
    """

    needs_all_tags = True

    def __init__(
        self,
        root: Path,
        *,
        split_files: Mapping[str, str] | None = None,
        tags_file: str | None = None,
        classes: tuple[str, ...] = VOC_CLASSES,
    ) -> None:
        self.root = voc_root(root)
        self._split_files = dict(split_files or {})
        self._classes = ClassIndex(classes)
        self._images = list_images(self.root / "JPEGImages", {".jpg", ".jpeg", ".png"})
        annotations = self.root / "Annotations"
        self._annotations = list_by_stem(annotations, {".xml"}) if annotations.is_dir() else {}
        self._given_tags: dict[str, Tags] = {}
        if tags_file is not None:
            self._given_tags = read_tag_file(locate(tags_file, self.root), self._classes)
            warn_unlisted(self._given_tags, self._images, tags_file=tags_file, where=str(self.root / "JPEGImages"))
        beside = self.root / "image_labels.txt"
        self._fallback_tags = read_tag_file(beside, self._classes) if beside.is_file() and not tags_file else {}

    def default_mask_dir(self) -> Path | None:
        """`SegmentationClass` in the root."""
        return self.root / "SegmentationClass"

    def splits(self) -> tuple[str, ...]:
        """Return the splits with a list of the user's or of VOC, and `trainaug` of VOC."""
        lists = [path.stem for path in sorted((self.root / "ImageSets" / "Segmentation").glob("*.txt"))]
        more = ["trainaug"] if self._classes.names == VOC_CLASSES else []
        return (*dict.fromkeys([*self._split_files, *(lists or ["train", "val"]), *more]),)

    def records(self, split: str, *, with_masks: bool, need_masks: bool = False) -> list[Record]:
        """Return the images of a split; masks come from files, see `default_mask_dir`.

        Raises:
            ArgumentError: `trainaug` without a list.
            DatasetNotFoundError: no list of that split.
            DataError: the list names images that are not there.
        """
        list_file = self._list_file(split)
        ids = read_id_list(list_file)
        require_listed(ids, self._images, listed_in=list_file, folder=self.root / "JPEGImages")
        return [Record(image_id, self._images[image_id], self._tags(image_id)) for image_id in ids]

    def _tags(self, image_id: str) -> Tags | None:
        if image_id in self._given_tags:
            return self._given_tags[image_id]
        if image_id in self._annotations:
            return read_xml_tags(self._annotations[image_id], self._classes)
        return self._fallback_tags.get(image_id)

    def _list_file(self, split: str) -> Path:
        if split in self._split_files:
            return locate(self._split_files[split], self.root)
        folder = self.root / "ImageSets" / "Segmentation"
        standard = folder / f"{split}.txt"
        if standard.is_file():
            return standard
        if split == "trainaug":
            raise ArgumentError(
                "split_files",
                self._split_files,
                "the ids of trainaug (10,582 images of SBD and VOC) are no part of VOC 2012; "
                "give your list as split_files={'trainaug': 'path/to/trainaug.txt'}",
            )
        present = first_few(sorted(path.stem for path in folder.glob("*.txt")), limit=6) or "no list at all"
        raise DatasetNotFoundError(
            f"{standard}: no list for the split {split!r} (there: {present}); name one of them or give split_files"
        )


def voc_root(root: Path) -> Path:
    """Return the folder with `JPEGImages`: `root` itself, or `VOC2012` or `VOCdevkit/VOC2012` in it."""
    require_folder(root, what="root", remedy=_REMEDY)
    for folder in (root, root / "VOC2012", root / "VOCdevkit" / "VOC2012"):
        if (folder / "JPEGImages").is_dir():
            return folder
    raise DatasetNotFoundError(f"root={str(root)!r}: no folder JPEGImages in it; {_REMEDY}")
