"""Reads a folder of your own photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rca_lightning.data.classes import ClassIndex
from rca_lightning.data.records import Record
from rca_lightning.data.tag_files import Tags, read_id_list, read_tag_file, require_listed
from rca_lightning.errors import DataError
from rca_lightning.io.listing import list_images, locate, require_folder


class FolderSource:
    """Images in one folder, their tags in a file.

    Args:
        root: folder that relative paths refer to.
        classes: the class names.
        image_dir: folder of the images; default `root/images` where that exists, else `root`.
        tags_file: CSV or text file, see `read_tag_file`; default the first there is of `root/tags.csv`
            and `root/tags.txt`. The tags of an image that no file lists are unknown, which is enough to
            predict.
        split_files: split name to the file with its ids. Without any, `train`, `val` and `test` are all images, as is
            `all` in any case.

    Raises:
        DatasetNotFoundError: no such folder or file.
        DataError: two images share an id, the tag file cannot be used, or names images that are not there.
    """

    needs_all_tags = False

    def __init__(
        self,
        root: Path,
        *,
        classes: tuple[str, ...],
        image_dir: str | None = None,
        tags_file: str | None = None,
        split_files: Mapping[str, str] | None = None,
    ) -> None:
        self.root = require_folder(root, what="root", remedy="give the folder that holds your images")
        self._split_files = dict(split_files or {})
        if image_dir is not None:
            self._folder = locate(image_dir, self.root)
            require_folder(self._folder, what="image_dir", remedy="give the folder of the images")
        else:
            self._folder = self.root / "images" if (self.root / "images").is_dir() else self.root
        self._images = list_images(self._folder)
        if not self._images:
            raise DataError(f"{self._folder}: no image in it; give image_dir, the folder with your images")
        self._tags = self._read_tags(tags_file, ClassIndex(classes))

    def default_mask_dir(self) -> Path | None:
        """`masks` in the root where that exists."""
        masks = self.root / "masks"
        return masks if masks.is_dir() else None

    def splits(self) -> tuple[str, ...]:
        """Return the splits with a list, or if there is no list the usual names; and `all`."""
        return (*dict.fromkeys((*(self._split_files or ("train", "val", "test")), "all")),)

    def records(self, split: str, *, with_masks: bool, need_masks: bool = False) -> list[Record]:
        """Return the images of a split; masks come from files, see `default_mask_dir`."""
        ids = list(self._images)
        if split in self._split_files:
            list_file = locate(self._split_files[split], self.root)
            ids = read_id_list(list_file)
            require_listed(ids, self._images, listed_in=list_file, folder=self._folder)
        tags = self._tags
        return [Record(name, self._images[name], None if tags is None else tags.get(name)) for name in ids]

    def _read_tags(self, tags_file: str | None, classes: ClassIndex) -> dict[str, Tags] | None:
        candidates = [self.root / "tags.csv", self.root / "tags.txt"]
        path = locate(tags_file, self.root) if tags_file else next((p for p in candidates if p.is_file()), None)
        if path is None:
            return None
        tags = read_tag_file(path, classes)
        require_listed(tags, self._images, listed_in=path, folder=self._folder)
        return tags
