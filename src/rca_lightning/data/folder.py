"""A folder of one's own photographs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rca_lightning.data.classes import ClassIndex
from rca_lightning.data.records import Record
from rca_lightning.data.tag_files import Tags, read_id_list, read_tag_file
from rca_lightning.errors import DataError
from rca_lightning.io.listing import IMAGE_EXTENSIONS, first_few, list_by_stem, locate, require_folder


class FolderSource:
    """Images in one folder, their tags in a file.

    Args:
        root: folder that relative paths refer to.
        classes: the class names.
        image_dir: folder of the images; default `root/images` where that exists, else `root`.
        tags_file: CSV or text file, see `read_tag_file`; default the first there is of `root/tags.csv`
            and `root/tags.txt`. Without any, tags are unknown, which is enough to predict. With one,
            an image it does not list has no tag.
        split_files: split name to the file with its ids. A split without a file is all images.

    Raises:
        DatasetNotFoundError: no such folder or file.
        DataError: two images share an id, the tag file cannot be used, or names images that are not there.
    """

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
        self._folder = self._image_folder(image_dir)
        self._images = list_by_stem(self._folder, IMAGE_EXTENSIONS)
        if not self._images:
            raise DataError(f"{self._folder}: no image in it; give image_dir, the folder with your images")
        self._tags = self._read_tags(tags_file, ClassIndex(classes))

    def default_mask_dir(self) -> Path | None:
        """`masks` in the root where that exists."""
        masks = self.root / "masks"
        return masks if masks.is_dir() else None

    def records(self, split: str, *, with_masks: bool) -> list[Record]:
        """Return the images of a split; masks come from files, see `default_mask_dir`.

        Raises:
            DatasetNotFoundError: the file of the split is missing.
            DataError: it names images that are not there.
        """
        ids = list(self._images)
        if split in self._split_files:
            list_file = locate(self._split_files[split], self.root)
            ids = read_id_list(list_file)
            self._require_images(ids, list_file)
        return [Record(image_id, self._images[image_id], self._tags_of(image_id)) for image_id in ids]

    def _tags_of(self, image_id: str) -> Tags | None:
        return None if self._tags is None else self._tags.get(image_id, ())

    def _image_folder(self, image_dir: str | None) -> Path:
        if image_dir is not None:
            return require_folder(
                locate(image_dir, self.root), what="image_dir", remedy="give the folder of the images"
            )
        images = self.root / "images"
        return images if images.is_dir() else self.root

    def _read_tags(self, tags_file: str | None, classes: ClassIndex) -> dict[str, Tags] | None:
        candidates = [self.root / "tags.csv", self.root / "tags.txt"]
        path = locate(tags_file, self.root) if tags_file else next((p for p in candidates if p.is_file()), None)
        if path is None:
            return None
        tags = read_tag_file(path, classes)
        self._require_images(list(tags), path)
        return tags

    def _require_images(self, ids: list[str], listed_in: Path) -> None:
        absent = [image_id for image_id in ids if image_id not in self._images]
        if absent:
            raise DataError(
                f"{listed_in}: {len(absent)} of its {len(ids)} images are not in {self._folder}: "
                f"{first_few(absent)}; add them or take them out of the file"
            )
