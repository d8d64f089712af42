"""Cache of features on disk: a file for each photograph and scale, computed once and read by memory map."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.data.records import Record
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.io.atomic import lock, output_errors, write_atomically
from rca_lightning.io.tensor_file import load_tensors

GIB = 2**30
_KEY_FILE = "key.json"


class FeatureCache:
    """Features of photographs, `(D, h, w)` float16 each, and of their mirror images.

    They are one map, or several levels from fine to coarse, each with its own channels and grid, in a file of its own.
    Files lie in a folder named by the digest of a key, so features of other weights or settings are never read, and the
    next run with the same ones reads those of this run. The name of a file contains the size and the time of change of
    the photograph. A file is whole or absent; several processes and runs may write at the same time.

    Args:
        folder: the cache; it may hold features of several keys.
        max_gib: most that all files of the folder may take together. Features of other keys make room, those unused for
            the longest first, but not those that another run reads now.

    Example:
        >>> import tempfile
        >>> cache = FeatureCache(tempfile.mkdtemp())
        >>> cache.use({"weights": "0123"}, scales=[1.0])
        >>> photograph = Record("a", Path(__file__))
        >>> cache.read(photograph) is None
        True
        >>> cache.write(photograph, 1.0, [torch.zeros(4, 2, 3)])
        >>> [features.shape for features in cache.read(photograph)]
        [torch.Size([1, 4, 2, 3])]
    """

    @check_arguments
    def __init__(self, folder: str | Path, *, max_gib: float = 50.0) -> None:
        if not 0 < max_gib < float("inf"):
            raise ArgumentError("max_gib", max_gib, "give a number of GiB above 0")
        self.root = Path(folder)
        self.max_gib = max_gib
        self._held: int | None = None
        self.use({}, scales=[])

    def use(self, key: dict[str, object], *, scales: Sequence[float], flip: bool = False, levels: int = 1) -> None:
        """Read and write features of this key from now on.

        Args:
            key: all that features depend on but the view: JSON values.
            scales: of the views that photographs are scored by. Training reads the first.
            flip: whether photographs are scored by their mirror images too.
            levels: maps of each view, from fine to coarse.
        """
        self.release()
        self.scales = tuple(scales)
        self.flip = flip
        self.levels = levels
        self.key = json.loads(json.dumps(key))
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.folder = self.root / digest[:24]

    def path(self, record: Record, scale: float, *, mirrored: bool = False, level: int = 0) -> Path:
        """Where the features of a photograph, or of its mirror image, are at a scale and level, or would be."""
        status = record.image.stat()  # not `stamp`: without a photograph there are no features
        known = [record.image_id, status.st_size, status.st_mtime_ns, float(scale), mirrored]
        known += [level] * (level > 0)  # files from before there were levels stay valid
        name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    def views(self, *, scored: bool) -> list[tuple[float, bool]]:
        """Scales, and whether mirrored, that a photograph needs: to be scored all, to be trained on the first."""
        every = [(scale, mirrored) for scale in self.scales for mirrored in (False, True)[: 1 + self.flip]]
        return every if scored else every[:1]

    def read(self, record: Record, *, scored: bool = False) -> list[Tensor] | None:
        """Read the features of a photograph that are one map; see `read_levels` for several.

        Args:
            record: the photograph.
            scored: whether all views, or the one that is trained on; see `views`.

        Returns:
            Of each scale `(V, D, h, w)` float16, where V is 1, or 2 with the mirror image; None where a file is missing
            or cannot be read.

        Raises:
            ArgumentError: there are several levels.
        """
        if self.levels > 1:
            raise ArgumentError("levels", self.levels, "read several with read_levels")
        of_scales = self.read_levels(record, scored=scored)
        return None if of_scales is None else [levels[0] for levels in of_scales]

    def read_levels(self, record: Record, *, scored: bool = False) -> list[list[Tensor]] | None:
        """Read the features of a photograph.

        Args:
            record: the photograph.
            scored: whether all views, or the one that is trained on; see `views`.

        Returns:
            Of each scale its levels, each `(V, D_k, h_k, w_k)` float16, where V is 1, or 2 with the mirror image; None
            where a file is missing or cannot be read.
        """
        of_scale: dict[float, list[list[npt.NDArray[np.float16]]]] = {}
        for scale, mirrored in self.views(scored=scored):
            view = self.open_view(record, scale, mirrored=mirrored)
            if view is None:
                return None
            of_scale.setdefault(scale, []).append(view)
        # A copy: a run that makes room may take a file away.
        return [
            [torch.from_numpy(np.stack(of_views)) for of_views in zip(*views, strict=True)]
            for views in of_scale.values()
        ]

    def open_view(
        self, record: Record, scale: float, *, mirrored: bool = False
    ) -> list[npt.NDArray[np.float16]] | None:
        """Map the levels `(D_k, h_k, w_k)` of a view into memory; None where a file is missing or cannot be read."""
        levels = []
        for level in range(self.levels):
            array = self._map(record, scale, mirrored=mirrored, level=level)
            if array is None:
                return None
            levels.append(array)
        return levels

    def missing(self, record: Record, *, scored: bool = False) -> list[tuple[float, bool]]:
        """The views of a photograph that have no features that can be read; see `views`."""
        views = self.views(scored=scored)
        return [view for view in views if self.open_view(record, view[0], mirrored=view[1]) is None]

    @staticmethod
    def stamp(record: Record) -> list[str | int]:
        """What tells whether a photograph is still the same; its id alone where it is gone."""
        try:
            status = record.image.stat()
        except OSError:
            return [record.image_id]
        return [record.image_id, status.st_size, status.st_mtime_ns]

    def read_tensors(self, name: str) -> dict[str, Tensor] | None:
        """Read tensors that `write_tensors` has kept under this key; None where there are none that can be read."""
        try:
            tensors = load_tensors(self.folder / name, map_location="cpu")
        except Exception:  # pickle, zip and torch each have errors of their own for a damaged file
            return None
        return tensors if isinstance(tensors, dict) else None

    def write_tensors(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors beside the features of this key, from which other runs read them.

        Raises:
            OutputError: the folder cannot be written to.
        """
        self.hold()
        content = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        with output_errors("features.folder", self.root, "give a folder with room"):
            write_atomically(self.folder / name, lambda file: torch.save(content, file))

    def write(self, record: Record, scale: float, features: Sequence[Tensor], *, mirrored: bool = False) -> None:
        """Write the features of a photograph or of its mirror image.

        Args:
            record: the photograph.
            scale: of the view.
            features: its levels, each `(D_k, h_k, w_k)`.
            mirrored: whether the view is the mirror image.

        Raises:
            ArgumentError: for another number of levels than `use` was told.
            OutputError: the folder cannot be written to.
        """
        if len(features) != self.levels:
            raise ArgumentError("features", len(features), f"give the maps of {self.levels} levels")
        for level, of_level in enumerate(features):
            path = self.path(record, scale, mirrored=mirrored, level=level)
            with output_errors("features.folder", self.root, "give a folder with room"):
                write_atomically(path, functools.partial(_save, of_level.to("cpu", torch.float16).numpy()))

    def _map(self, record: Record, scale: float, *, mirrored: bool, level: int) -> npt.NDArray[np.float16] | None:
        try:  # the photograph may be gone too
            path = self.path(record, scale, mirrored=mirrored, level=level)
            array: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array if array.dtype == np.float16 and array.ndim == 3 else None

    def begin(self, needed: int) -> None:
        """Claim room for so many further bytes before any is written; called by one process.

        Raises:
            OutputError: they do not fit into `max_gib` or on the disk, or the folder cannot be written to.
        """
        self.hold()
        own = _size(self.folder)
        limit = int(self.max_gib * GIB)
        if own + needed > limit:
            raise OutputError(
                f"features.max_gib={self.max_gib:g}: the features need {(own + needed) / GIB:.1f} GiB; give that, or "
                "a smaller scale or model.embedding_dim"
            )
        others = sorted(self._others(), key=lambda folder: _last_used(folder))
        taken = own + needed + sum(_size(folder) for folder in others)
        for folder in others:
            if taken > limit:
                size = _size(folder)
                taken -= size if _remove_unused(folder) else 0
        if taken > limit:
            raise OutputError(
                f"features.max_gib={self.max_gib:g}: other runs use {(taken - own - needed) / GIB:.1f} GiB of it, and "
                f"this one needs {(own + needed) / GIB:.1f}; wait for them, or give {taken / GIB:.1f} or another folder"
            )
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"features.folder={str(self.root)!r}: the features take {_text(needed)} more and the disk has "
                f"{_text(free)}; give a folder with room, or a smaller scale or model.embedding_dim"
            )

    def hold(self) -> None:
        """Mark the features of this key as used now and, until `release`, as not to be taken away by other runs.

        Raises:
            OutputError: the folder cannot be written to.
        """
        key_file = self.folder / _KEY_FILE
        with output_errors("features.folder", self.root):
            while self._held is None or os.fstat(self._held).st_nlink == 0:  # taken away before it was locked
                self.release()
                if not key_file.is_file():
                    write_atomically(key_file, lambda file: file.write(json.dumps(self.key, indent=1).encode()))
                self._held = os.open(key_file, os.O_RDONLY)
                lock(self._held, shared=True)
            os.utime(key_file)

    def release(self) -> None:
        """Let other runs take the features of this key away where they need room."""
        held, self._held = self._held, None
        if held is not None:
            os.close(held)

    def __del__(self) -> None:
        """Release the lock."""
        if getattr(self, "_held", None) is not None:
            self.release()

    def __getstate__(self) -> dict[str, object]:
        """Without the lock, which is this process's own."""
        return {**self.__dict__, "_held": None}

    def _others(self) -> list[Path]:
        """Folders of other keys."""
        return [path.parent for path in self.root.glob(f"*/{_KEY_FILE}") if path.parent != self.folder]


def _save(array: npt.NDArray[np.float16], file: BinaryIO) -> None:
    np.save(file, array, allow_pickle=False)


def _text(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB else f"{size / 2**20:.1f} MiB"


def _last_used(folder: Path) -> float:
    try:
        return (folder / _KEY_FILE).stat().st_mtime
    except OSError:  # another run has just taken it away
        return 0.0


def _remove_unused(folder: Path) -> bool:
    """Removes the features of a key unless a run holds them; returns whether it did."""
    try:
        held = os.open(folder / _KEY_FILE, os.O_RDONLY)
    except OSError:
        return not folder.exists()
    try:
        if not lock(held, wait=False):
            return False
        shutil.rmtree(folder, ignore_errors=True)
        return True
    finally:
        os.close(held)


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    total = 0
    for path, _, names in os.walk(folder):
        for name in names:
            with suppress(OSError):  # renamed or taken away meanwhile
                total += (Path(path) / name).stat().st_size
    return total
