"""Maps and label images of another model, that the first regions of a frozen fit are cut from."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.images import check_same_size, image_size, read_mask
from rca_lightning.data.records import Record, RecordTable
from rca_lightning.distributed import gather_objects, world_size_and_rank
from rca_lightning.errors import DataError, RCAError
from rca_lightning.io.listing import first_few, list_by_stem, require_folder
from rca_lightning.io.npz import read_npy, read_npz
from rca_lightning.io.progress import show_progress

_info = rank_zero_only(logging.getLogger(__name__).info)
_warn = rank_zero_only(logging.getLogger(__name__).warning)

SeedRounds = Literal["first", "all"]

UNDECIDED = 0.25
"""Of its peak that a map has where a label image is undecided: too little for a region, too much for background."""

_REMEDY = "correct it, or take it out of seed_dir: the CAM then stands in"
_SMALL = 1 << 22  # numbers; arrays of at most so many are read, so that a wrong size can be named in the error
_UNPICKLED = (
    "if you trust it, load it, save numpy.savez('<id>.npz', maps=<(K, H, W) numbers>, classes=<(K,) integers from 0>)"
    ", or numpy.save of (L, H, W) numbers alone"
)


@dataclass(frozen=True)
class Seeds:
    """Maps of some tags of one photograph.

    Attributes:
        classes: `(K,)` int64, the tags that the file says something of, ascending.
        maps: `(K, H, W)` float32, each with a positive number.
        undecided: `(H, W)` bool, pixels that are neither of a class nor background; None without any.
    """

    classes: Tensor
    maps: Tensor
    undecided: Tensor | None = None

    def on_grid(self, cells: tuple[int, int]) -> Tensor:
        """Means of the maps over cells, `(K, h, w)`, each divided by its peak; see `UNDECIDED`.

        Example:
            >>> maps = torch.tensor([[[1.0, 1.0, 0.0, 0.0, 0.0, 0.0]]])
            >>> undecided = torch.tensor([[False, False, False, False, True, True]])
            >>> Seeds(torch.tensor([0]), maps, undecided).on_grid((1, 3))
            tensor([[[1.0000, 0.0000, 0.2500]]])
        """
        pooled = F.adaptive_avg_pool2d(self.maps.clamp_min(0), cells)
        pooled = pooled / pooled.amax(dim=(1, 2), keepdim=True).clamp_min(torch.finfo(pooled.dtype).tiny)
        if self.undecided is None:
            return pooled
        share = F.adaptive_avg_pool2d(self.undecided[None].float(), cells)
        return torch.maximum(pooled, UNDECIDED * share)


class SeedMaps:
    """Maps of the photographs to train on, in a folder: one file a photograph, named by its id.

    - `<id>.npz`: `maps` `(K, H, W)` and `classes` `(K,)`, indices from 0; `rca predict` writes such files into `cams`.
    - `<id>.npy`: `(L, H, W)`, a map for each class; or `(K, H, W)`, one for each tag of the photograph by rising class.
    - `<id>.png`: a label image: 0 background, class index + 1, 255 undecided.

    Maps are finite numbers of any scale, of which those above 0 count, and have the size of the photograph. Maps of
    classes that are no tag of it are not read. Nothing is unpickled. A photograph without a file, and a tag without a
    map, or with one that is nowhere above 0, has no seeds.

    Args:
        folder: it.
        records: the photographs.
        num_classes: foreground classes `L`.

    Raises:
        DatasetNotFoundError: no such folder.
        DataError: two files of one id, or no file for any photograph.
    """

    def __init__(self, folder: Path, records: RecordTable, *, num_classes: int) -> None:
        self.folder = require_folder(folder, what="seed_dir", remedy="give the folder of the maps or label images")
        self.records = records
        self.num_classes = num_classes
        names, ids = list_by_stem(folder, set(_READERS)), records.image_ids
        self._files = {image_id: (row, names[image_id]) for row, image_id in enumerate(ids) if image_id in names}
        if not self._files:
            raise DataError(
                f"seed_dir={str(folder)!r}: no file for any of the {len(ids)} training images, such as {ids[0]}; name "
                f"them like the images, with the ending {', '.join(sorted(_READERS))}"
            )

    def read(self, image_id: str) -> Seeds | None:
        """Reads the maps of a photograph; None where it has no file, or none that says something of its tags.

        Raises:
            DatasetNotFoundError: a file is gone.
            DataError: a file is damaged, or does not fit the photograph or the classes.
        """
        if image_id not in self._files:
            return None
        row, path = self._files[image_id]
        record = self.records[row]
        tags = sorted(record.tags or ())
        seeds = _READERS[path.suffix.lower()](path, tags, image_size(record.image), self.num_classes, record)
        told = seeds.maps.flatten(1).amax(dim=1) > 0 if len(seeds.maps) else torch.zeros(0, dtype=torch.bool)
        return Seeds(seeds.classes[told], seeds.maps[told], seeds.undecided) if bool(told.any()) else None

    def check(self, *, skip: bool) -> None:
        """Reads all maps once, each rank its share, to find what is wrong, and logs how many there are.

        Args:
            skip: whether photographs that cannot be read are left out of training, and their maps with them.

        Raises:
            DataError: the first file that cannot be used.
        """
        processes, rank = world_size_and_rank()
        share = list(self._files)[rank::processes]
        error: str | None = None
        told, started = 0, time.monotonic()
        silent: list[str] = []
        for image_id in show_progress(share, what="seed_dir", total=len(share)):
            try:
                found = None if skip and self._lacks_photograph(image_id) else self.read(image_id)
            except RCAError as reason:
                error = str(reason)
                break
            told += 0 if found is None else len(found.classes)
            silent += [image_id] if found is None else []
        of_ranks = gather_objects((error, told, silent))  # so that every rank has the same error
        if errors := [reason for reason, _, _ in of_ranks if reason is not None]:
            raise DataError(errors[0])
        ids, tags = self.records.image_ids, int(self.records.tag_counts.clip(0).sum())
        _info(
            "seed_dir: %d of %d photographs have maps, for %d of their %d tags; read in %.0f seconds",
            *(len(self._files) - sum(len(of_rank) for _, _, of_rank in of_ranks), len(ids)),
            *(sum(of_rank for _, of_rank, _ in of_ranks), tags, time.monotonic() - started),
        )
        without = [image_id for image_id in ids if image_id not in self._files]
        without += [image_id for _, _, of_rank in of_ranks for image_id in of_rank]
        if without:
            _warn(
                "seed_dir: the CAM stands in for %d photographs without maps of their tags: %s",
                len(without),
                first_few(sorted(without)),
            )

    def _lacks_photograph(self, image_id: str) -> bool:
        try:
            image_size(self.records[self._files[image_id][0]].image)
        except RCAError:
            return True
        return False


def _read_archive(path: Path, tags: list[int], size: tuple[int, int], num_classes: int, record: Record) -> Seeds:
    most = {"maps": max(num_classes * size[0] * size[1], _SMALL), "classes": num_classes}
    arrays = read_npz(path, most, remedy=_REMEDY)
    maps, classes = arrays["maps"], arrays["classes"]
    if maps.ndim != 3 or classes.shape != maps.shape[:1] or classes.dtype.kind not in "iu":
        raise DataError(f"{path}: maps {maps.shape} of classes {classes.shape} {classes.dtype}; {_REMEDY}")
    given = [int(index) for index in classes]
    if wrong := [index for index in given if not 0 <= index < num_classes]:
        raise DataError(f"{path}: class {wrong[0]} of classes 0 to {num_classes - 1}; {_REMEDY}")
    if len(set(given)) < len(given):
        raise DataError(f"{path}: classes {given[:8]} name one of them twice; {_REMEDY}")
    places = {index: place for place, index in enumerate(given)}
    kept = [index for index in tags if index in places]
    return _seeds(path, maps, [places[index] for index in kept], kept, size, record)


def _read_plain(path: Path, tags: list[int], size: tuple[int, int], num_classes: int, record: Record) -> Seeds:
    maps = read_npy(path, max(num_classes * size[0] * size[1], _SMALL), remedy=_REMEDY, if_pickled=_UNPICKLED)
    if maps.ndim != 3 or len(maps) not in (num_classes, len(tags)):
        raise DataError(
            f"{path}: shape {maps.shape}; give ({num_classes}, H, W), a map for each class, or ({len(tags)}, H, W), "
            f"one for each tag of the photograph; {_REMEDY}"
        )
    places = tags if len(maps) == num_classes else list(range(len(tags)))
    return _seeds(path, maps, places, tags, size, record)


def _read_labels(path: Path, tags: list[int], size: tuple[int, int], num_classes: int, record: Record) -> Seeds:
    labels = torch.from_numpy(np.array(read_mask(path, num_classes=num_classes)))
    check_same_size(size, (labels.shape[0], labels.shape[1]), image_path=record.image, other_name=f"the seeds {path}")
    maps = labels[None] == torch.tensor(tags, dtype=torch.uint8)[:, None, None] + 1  # (K, H, W)
    undecided = labels == IGNORE_INDEX
    return Seeds(torch.tensor(tags, dtype=torch.int64), maps.float(), undecided if bool(undecided.any()) else None)


def _seeds(
    path: Path, maps: npt.NDArray[Any], places: list[int], kept: list[int], size: tuple[int, int], record: Record
) -> Seeds:
    height, width = maps.shape[1:]
    check_same_size(size, (height, width), image_path=record.image, other_name=f"the seeds {path}")
    with np.errstate(over="ignore", invalid="ignore"):  # values beyond float32 become infinite, and are refused
        values = torch.from_numpy(maps[places].astype(np.float32))
    if bad := int((~torch.isfinite(values)).sum()):
        raise DataError(f"{path}: {bad} of {values.numel()} values NaN or infinite; {_REMEDY}")
    return Seeds(torch.tensor(kept, dtype=torch.int64), values)


_Read = Callable[[Path, list[int], tuple[int, int], int, Record], Seeds]
_READERS: dict[str, _Read] = {".npz": _read_archive, ".npy": _read_plain, ".png": _read_labels}
