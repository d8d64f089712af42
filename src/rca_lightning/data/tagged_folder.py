"""Finds the photographs of a folder and their tags: a tag file, one subfolder a class, or keywords in the files."""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from rca_lightning.arguments import check_arguments
from rca_lightning.data.classes import ClassIndex, read_class_file, reserved_mask_value
from rca_lightning.data.keyword_tags import read_keywords
from rca_lightning.data.tag_files import Tags, read_tag_names, require_listed
from rca_lightning.errors import DataError
from rca_lightning.io.atomic import output_errors
from rca_lightning.io.listing import first_few, list_images, locate, require_folder

_log = logging.getLogger(__name__)

TagOrigin = Literal["file", "subfolders", "keywords"]


@dataclass(frozen=True)
class TaggedFolder:
    """Photographs by id, and what is known of their tags.

    Attributes:
        origin: where the tags come from.
        described: the same in words, such as the path of the file.
        image_dir: one folder with all photographs, or with links to them.
        images: file of each photograph.
        class_names: in the order of the mask values 1, 2, ...
        tags: of the photographs whose tags are known.
    """

    origin: TagOrigin
    described: str
    image_dir: Path
    images: Mapping[str, Path]
    class_names: tuple[str, ...]
    tags: Mapping[str, Tags]


@check_arguments
def read_tagged_folder(
    root: Path,
    *,
    links: Path,
    tags_file: str | None = None,
    class_file: str | None = None,
    exclude: Collection[Path] = (),
    each: Callable[[int, int], None] = lambda done, total: None,
) -> TaggedFolder:
    """Find photographs and tags; what comes first is taken: `tags_file`, `tags.csv`, `tags.txt`, subfolders, keywords.

    Photographs lie in `root/images` if that exists, else in `root`; or in its subfolders, whose names are then the tags
    unless there is a tag file. A photograph that two subfolders hold, byte for byte under one name, has both tags; the
    subfolder `background` holds photographs of none of the classes.

    Args:
        root: the folder.
        links: folder for links to photographs in subfolders; made where it is needed.
        tags_file: see `read_tag_file`.
        class_file: see `read_class_file`; default `root/classes.txt`, and without it the classes are the tags, sorted.
        exclude: folders in `root` that hold no photographs, such as those of results.
        each: called with the number of files whose keywords are read, and of all.

    Raises:
        DatasetNotFoundError: no such folder or file.
        DataError: no photograph, no tags, an unknown tag, or a name that two photographs share.
    """
    require_folder(root, what="photographs", remedy="give the folder that holds your photographs")
    base = root / "images" if (root / "images").is_dir() else root
    images, folders = _list_photographs(base, exclude)
    image_dir = base
    if folders:
        image_dir = links
        _link(images, links)
    if class_file is None and (root / "classes.txt").is_file():
        class_file = "classes.txt"
    known = None if class_file is None else read_class_file(locate(class_file, root))
    path = _tag_file(root, tags_file)
    if path is not None:
        names = _Names(known)
        for where, image_id, of_image in read_tag_names(path):
            names.add(image_id, of_image, where=where)
        require_listed(names.of_image, images, listed_in=path, folder=base)
        return _finish("file", str(path), image_dir, images, names)
    if folders:
        names = _Names(known)
        for image_id, holders in folders.items():
            shown = () if holders == ("background",) else holders
            names.add(image_id, shown, where=f"subfolder of {base}")
        return _finish("subfolders", f"the subfolders of {base}", image_dir, images, names)
    names = _Names(known, ignores_unknown=True)
    for number, (image_id, file) in enumerate(images.items(), start=1):
        keywords = read_keywords(file)
        if keywords:
            names.add(image_id, keywords, where=str(file))
        each(number, len(images))
    if not any(names.of_image.values()):
        found = f", and none of {len(names.unknown)} keywords is in {class_file}" if names.unknown else ""
        raise DataError(
            f"{root}: no tags found: no tags.csv or tags.txt, no subfolder a class, no keywords in the {len(images)} "
            f"files{found}; write tags.csv (first line 'image,tags', then lines such as 'beach,dog;person'), or give "
            "--tags FILE"
        )
    if names.unknown:
        most = first_few(f"{name} ({count})" for name, count in names.unknown.most_common())
        _log.warning("keywords that are not in the list of classes are not used: %s", most)
    return _finish("keywords", "keywords in the files", image_dir, images, names)


@dataclass
class _Names:
    """Tags by name, and the classes they stand for; equal tags share one tuple, for there are many photographs."""

    known: tuple[str, ...] | None
    ignores_unknown: bool = False
    of_image: dict[str, tuple[str, ...]] = field(default_factory=dict)
    unknown: Counter[str] = field(default_factory=Counter)
    _index: ClassIndex | None = None
    _shared: dict[tuple[str, ...], tuple[str, ...]] = field(default_factory=dict)

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
        if kept or not self.ignores_unknown:
            tags = tuple(kept)
            self.of_image[image_id] = self._shared.setdefault(tags, tags)

    def classes(self) -> tuple[str, ...]:
        """Those of the list, else all tags, sorted.

        Raises:
            DataError: two tags differ in case only.
        """
        if self.known is not None:
            return self.known
        names = sorted({name for tags in self._shared for name in tags}, key=lambda name: (name.casefold(), name))
        for first, second in itertools.pairwise(names):
            if first.casefold() == second.casefold():
                raise DataError(f"tags {first!r} and {second!r} differ in case only; write one of them everywhere")
        return tuple(names)


def _finish(
    origin: TagOrigin, described: str, image_dir: Path, images: Mapping[str, Path], names: _Names
) -> TaggedFolder:
    classes = names.classes()
    index = ClassIndex(classes)
    tags = {shared: tuple(sorted({index.lookup(name, where=described) for name in shared})) for shared in names._shared}
    of_image = {image_id: tags[shared] for image_id, shared in names.of_image.items()}
    return TaggedFolder(origin, described, image_dir, images, classes, of_image)


def _tag_file(root: Path, tags_file: str | None) -> Path | None:
    if tags_file is not None:
        return locate(tags_file, root)
    return next((path for path in (root / "tags.csv", root / "tags.txt") if path.is_file()), None)


def _list_photographs(base: Path, exclude: Collection[Path]) -> tuple[Mapping[str, Path], dict[str, tuple[str, ...]]]:
    """Photographs by id; and of those in subfolders the names of their subfolders, empty without subfolders."""
    images = list_images(base)
    excluded = {path.resolve() for path in exclude}
    inside: dict[str, dict[str, Path]] = {}
    for folder in _subfolders(base):
        if folder.resolve() not in excluded and (listed := list_images(folder)):
            inside[folder.name] = listed
    if images:  # photographs beside subfolders have no tag of their own
        if inside:
            _log.warning("%s: photographs in its subfolders (%s) are not read", base, first_few(inside))
        return images, {}
    if not inside:
        raise DataError(f"{base}: no photograph in it; give the folder that holds your photographs")
    return _join(inside)


def _subfolders(base: Path) -> Iterator[Path]:
    with os.scandir(base) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    return (base / name for name in names)


def _join(inside: Mapping[str, Mapping[str, Path]]) -> tuple[dict[str, Path], dict[str, tuple[str, ...]]]:
    """One id for each photograph of several folders: its name, with the folder before it where others have it too."""
    holders: dict[str, list[str]] = {}
    for name, listed in inside.items():
        for image_id in listed:
            holders.setdefault(image_id, []).append(name)
    images: dict[str, Path] = {}
    folders: dict[str, tuple[str, ...]] = {}
    for image_id, names in holders.items():
        files = [inside[name][image_id] for name in names]
        if all(_same(files[0], other) for other in files[1:]):
            images[image_id], folders[image_id] = files[0], tuple(names)
            continue
        for name, file in zip(names, files, strict=True):
            own = f"{name}_{image_id}"
            if own in images or own in holders:
                raise DataError(f"{file}: another photograph has the name {own!r}; rename one of them")
            images[own], folders[own] = file, (name,)
    return dict(sorted(images.items())), folders


def _same(first: Path, second: Path) -> bool:
    return first.stat().st_size == second.stat().st_size and first.read_bytes() == second.read_bytes()


def _link(images: Mapping[str, Path], folder: Path) -> None:
    """Makes a folder of links with these names, and removes those of photographs that are gone."""
    with output_errors("out", folder, "give a folder that takes links, or put all photographs into one folder"):
        folder.mkdir(parents=True, exist_ok=True)
        wanted = {f"{image_id}{file.suffix}": file.resolve() for image_id, file in images.items()}
        for entry in os.scandir(folder):
            if entry.is_symlink() and (entry.name not in wanted or Path(entry.path).readlink() != wanted[entry.name]):
                Path(entry.path).unlink()
        for name, file in wanted.items():
            if not (folder / name).is_symlink():
                (folder / name).symlink_to(file)


def tag_names(tags: Tags, class_names: Sequence[str]) -> tuple[str, ...]:
    """Names of class indices."""
    return tuple(class_names[index] for index in tags)
