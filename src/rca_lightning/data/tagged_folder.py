"""Finds the photographs of a folder and their tags: a tag file, one subfolder a class, or keywords in the files."""

from __future__ import annotations

import hashlib
import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rca_lightning.arguments import check_arguments
from rca_lightning.data.catalogue import Catalogue, Listing
from rca_lightning.data.classes import ClassIndex, read_class_file, reserved_mask_value
from rca_lightning.data.keyword_tags import read_keywords
from rca_lightning.data.records import Record
from rca_lightning.data.tag_files import Tags, iterate_tag_names, not_listed, tagged_twice
from rca_lightning.errors import DataError
from rca_lightning.io.listing import first_few, locate, require_folder, scan_images

_log = logging.getLogger(__name__)

TagOrigin = Literal["file", "subfolders", "keywords"]


@check_arguments
def read_tagged_folder(
    root: Path,
    *,
    catalogue: Path,
    tags_file: str | None = None,
    class_file: str | None = None,
    exclude: Collection[Path] = (),
    each: Callable[[int, int], None] = lambda done, total: None,
    known: Catalogue | None = None,
) -> Catalogue:
    """Find photographs and tags; what comes first is taken: `tags_file`, `tags.csv`, `tags.txt`, subfolders, keywords.

    Photographs lie in `root/images` if that exists, else in `root`; or in its subfolders, whose names are then the tags
    unless there is a tag file. A photograph that two subfolders hold, byte for byte under one name, has both tags; the
    subfolder `background` holds photographs of none of the classes.

    Folders and tag files are read entry by entry into a list on disk, so memory does not grow with their length but for
    8 bytes a photograph.

    Args:
        root: the folder.
        catalogue: folder for the list.
        tags_file: see `read_tag_file`.
        class_file: see `read_class_file`; default `root/classes.txt`, and without it the classes are the tags, sorted.
        exclude: folders in `root` that hold no photographs, such as those of results.
        each: called with the number of files whose keywords are read, and of all.
        known: a list of before, which is returned where folders and files have the times of change that they had then;
            a photograph that was written over in its place is not noticed so.

    Raises:
        DatasetNotFoundError: no such folder or file.
        DataError: no photograph, no tags, an unknown tag, or a name that two photographs share.
        OSError: the list cannot be written.
    """
    require_folder(root, what="photographs", remedy="give the folder that holds your photographs")
    base = root / "images" if (root / "images").is_dir() else root
    if class_file is None and (root / "classes.txt").is_file():
        class_file = "classes.txt"
    classes_from = None if class_file is None else locate(class_file, root)
    classes = None if classes_from is None else read_class_file(classes_from)
    path = _tag_file(root, tags_file)
    excluded = {folder.resolve() for folder in exclude}
    stamp = _stamp(base, path, classes_from, excluded)
    if known is not None and known.facts.stamp == stamp:
        return known
    with Listing(base.absolute()) as listing:
        folders = _list_photographs(listing, base, excluded)
        if folders:
            listing.join(_same)
        if path is not None:
            names = _Names(listing, classes)
            for where, image_id, of_image in iterate_tag_names(path):
                names.add(image_id, of_image, where=where)
            if absent := list(listing.strangers()):  # an error may name them all
                raise not_listed(absent, of=listing.num_tagged, listed_in=path, folder=base)
            origin: TagOrigin = "file"
            described = str(path)
        elif folders:
            names = _Names(listing, classes)
            for image_id, holders in listing.holders():
                shown = () if holders == ("background",) else holders
                names.add(image_id, shown, where=f"subfolder of {base}")
            origin, described = "subfolders", f"the subfolders of {base}"
        else:
            names = _Names(listing, classes, ignores_unknown=True)
            _read_keywords(listing, names, root, class_file, each)
            origin, described = "keywords", "keywords in the files"
        class_names = names.classes()
        records = _records(listing, ClassIndex(class_names), described)
        return Catalogue.write(
            catalogue, records, origin=origin, described=described, class_names=class_names, stamp=stamp
        )


def _read_keywords(
    listing: Listing, names: _Names, root: Path, class_file: str | None, each: Callable[[int, int], None]
) -> None:
    total = len(listing)
    for number, (image_id, file) in enumerate(listing.photographs(), start=1):
        keywords = read_keywords(file)
        if keywords:
            names.add(image_id, keywords, where=str(file))
        each(number, total)
    if not names.used:
        found = f", and none of {len(names.unknown)} keywords is in {class_file}" if names.unknown else ""
        raise DataError(
            f"{root}: no tags found: no tags.csv or tags.txt, no subfolder a class, no keywords in the {total} "
            f"files{found}; write tags.csv (first line 'image,tags', then lines such as 'beach,dog;person'), or give "
            "--tags FILE"
        )
    if names.unknown:
        most = first_few(f"{name} ({count})" for name, count in names.unknown.most_common())
        _log.warning("keywords that are not in the list of classes are not used: %s", most)


def _records(listing: Listing, index: ClassIndex, described: str) -> Iterator[Record]:
    for image_id, file, names in listing:
        tags: Tags | None = None
        if names is not None:
            tags = tuple(sorted({index.lookup(name, where=described) for name in names}))
        yield Record(image_id, file, tags)


@dataclass
class _Names:
    """Tags by name, which go into the listing, and the classes they stand for.

    Attributes:
        used: all names of tags.
        unknown: number of photographs of each keyword that is not in the list of classes.
    """

    listing: Listing
    known: tuple[str, ...] | None
    ignores_unknown: bool = False
    used: set[str] = field(default_factory=set)
    unknown: Counter[str] = field(default_factory=Counter)
    _index: ClassIndex | None = None

    def __post_init__(self) -> None:
        self._index = None if self.known is None else ClassIndex(self.known)

    def add(self, image_id: str, names: Iterable[str], *, where: str) -> None:
        kept = []
        for name in names:
            if self._index is not None and self.ignores_unknown and name not in self._index.names:
                self.unknown[name] += 1
                continue
            if self._index is not None:
                self._index.lookup(name, where=where)
            elif (value := reserved_mask_value(name)) is not None:
                raise DataError(f"{where}: {name!r} is no class but mask value {value}; leave it out of the tags")
            kept.append(name)
        if (kept or not self.ignores_unknown) and not self.listing.add_tags(image_id, kept):
            raise tagged_twice(image_id, where=where)
        self.used.update(kept)

    def classes(self) -> tuple[str, ...]:
        """Those of the list, else all tags, sorted.

        Raises:
            DataError: two tags differ in case only.
        """
        if self.known is not None:
            return self.known
        names = sorted(self.used, key=lambda name: (name.casefold(), name))
        for first, second in itertools.pairwise(names):
            if first.casefold() == second.casefold():
                raise DataError(f"tags {first!r} and {second!r} differ in case only; write one of them everywhere")
        return tuple(names)


def _tag_file(root: Path, tags_file: str | None) -> Path | None:
    if tags_file is not None:
        return locate(tags_file, root)
    return next((path for path in (root / "tags.csv", root / "tags.txt") if path.is_file()), None)


def _list_photographs(listing: Listing, base: Path, excluded: Collection[Path]) -> bool:
    """Lists the photographs of the base, else of its subfolders; returns whether they are in subfolders."""
    listing.add_photographs(scan_images(base))
    folders = [folder for folder in _subfolders(base) if folder.resolve() not in excluded]
    if len(listing):  # photographs beside subfolders have no tag of their own
        if inside := [folder.name for folder in folders if next(scan_images(folder), None) is not None]:
            _log.warning("%s: photographs in its subfolders (%s) are not read", base, first_few(inside))
        listing.sort()
        return False
    for folder in folders:
        listing.add_photographs(scan_images(folder), folder=folder.name)
    if not len(listing):
        raise DataError(f"{base}: no photograph in it; give the folder that holds your photographs")
    listing.sort()
    return True


def _subfolders(base: Path) -> Iterator[Path]:
    with os.scandir(base) as entries:
        names = sorted(entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir())
    return (base / name for name in names)


def _stamp(base: Path, tags: Path | None, classes: Path | None, excluded: Collection[Path]) -> str:
    """Digest of the times of change of all folders and lists that the photographs and tags come from."""
    digest = hashlib.sha256()
    folders = [folder for folder in _subfolders(base) if folder.resolve() not in excluded]
    for path in (base, tags, classes, *folders):
        status = None if path is None or not path.exists() else path.stat()
        known = None if status is None else (status.st_mtime_ns, status.st_size, status.st_ino)
        digest.update(f"{path and path.absolute()} {known}\n".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:32]


def _same(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()


def tag_names(tags: Tags, class_names: Sequence[str]) -> tuple[str, ...]:
    """Names of class indices."""
    return tuple(class_names[index] for index in tags)
