"""Cache of features on disk: a file for each photograph and scale, computed once and read by memory map."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.data.records import Record
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.io.atomic import output_errors, write_atomically

GIB = 2**30
_KEY_FILE = "key.json"


class FeatureCache:
    """Features of photographs, `(D, h, w)` float16 each, and of their mirror images.

    Files lie in a folder named by the digest of a key, so features of other weights or settings are never read, and the
    next run with the same ones reads those of this run. The name of a file contains the size and the time of change of
    the photograph. A file is whole or absent; several processes may write at the same time.

    Args:
        folder: the cache; it may hold features of several keys.
        max_gib: most that all files of the folder may take together. Features of other keys make room, those unused for
            the longest first.

    Example:
        >>> import tempfile
        >>> cache = FeatureCache(tempfile.mkdtemp())
        >>> cache.use({"weights": "0123"}, scales=[1.0])
        >>> photograph = Record("a", Path(__file__))
        >>> cache.read(photograph) is None
        True
        >>> cache.write(photograph, 1.0, torch.zeros(4, 2, 3))
        >>> [features.shape for features in cache.read(photograph)]
        [torch.Size([1, 4, 2, 3])]
    """

    @check_arguments
    def __init__(self, folder: str | Path, *, max_gib: float = 50.0) -> None:
        if not 0 < max_gib < float("inf"):
            raise ArgumentError("max_gib", max_gib, "give a number of GiB above 0")
        self.root = Path(folder)
        self.max_gib = max_gib
        self.use({}, scales=[])

    def use(self, key: dict[str, object], *, scales: Sequence[float]) -> None:
        """Read and write features of this key from now on.

        Args:
            key: all that features depend on but the photograph and the scale: JSON values.
            scales: that `read` reads.
        """
        self.scales = tuple(scales)
        self.key = json.loads(json.dumps(key))
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()
        self.folder = self.root / digest[:24]

    def path(self, record: Record, scale: float, *, mirrored: bool = False) -> Path:
        """Where the features of a photograph, or of its mirror image, are at a scale, or would be."""
        status = record.image.stat()
        known = [record.image_id, status.st_size, status.st_mtime_ns, float(scale), mirrored]
        name = hashlib.sha256(json.dumps(known).encode()).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.npy"

    def read(self, record: Record, *, mirrored: bool = False) -> list[Tensor] | None:
        """Read the features of a photograph.

        Args:
            record: the photograph.
            mirrored: whether with those of its mirror image.

        Returns:
            Of each scale `(V, D, h, w)` float16, where V is 1, or 2 with the mirror image; None where a file is missing
            or cannot be read.
        """
        features = []
        for scale in self.scales:
            views = [self._map(self.path(record, scale, mirrored=side)) for side in (False, True)[: 1 + mirrored]]
            whole = [view for view in views if view is not None]
            if len(whole) < len(views):
                return None
            features.append(torch.from_numpy(np.stack(whole)))  # a copy: a run that makes room may take a file away
        return features

    def missing(self, record: Record, *, mirrored: bool = False) -> list[tuple[float, bool]]:
        """Scales at which a photograph has no features that can be read, and whether of its mirror image."""
        views = [(scale, side) for scale in self.scales for side in (False, True)[: 1 + mirrored]]
        return [view for view in views if self._map(self.path(record, view[0], mirrored=view[1])) is None]

    def write(self, record: Record, scale: float, features: Tensor, *, mirrored: bool = False) -> None:
        """Write the features `(D, h, w)` of a photograph or of its mirror image.

        Raises:
            OutputError: the folder cannot be written to.
        """
        array, path = features.to("cpu", torch.float16).numpy(), self.path(record, scale, mirrored=mirrored)
        with output_errors("features.folder", self.root, "give a folder with room"):
            write_atomically(path, lambda file: np.save(file, array, allow_pickle=False))

    @staticmethod
    def _map(path: Path) -> npt.NDArray[np.float16] | None:
        try:
            array: npt.NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return array if array.dtype == np.float16 and array.ndim == 3 else None

    def begin(self, needed: int) -> None:
        """Claim room for so many further bytes before any is written; called by one process.

        Raises:
            OutputError: they do not fit into `max_gib` or on the disk, or the folder cannot be written to.
        """
        with output_errors("features.folder", self.root):
            self.folder.mkdir(parents=True, exist_ok=True)
            key_file = self.folder / _KEY_FILE
            write_atomically(key_file, lambda file: file.write(json.dumps(self.key, indent=1).encode()))
        own = _size(self.folder)
        limit = int(self.max_gib * GIB)
        if own + needed > limit:
            raise OutputError(
                f"features.max_gib={self.max_gib:g}: the features need {(own + needed) / GIB:.1f} GiB; give that, or "
                "a smaller scale or model.embedding_dim"
            )
        others = sorted(self._others(), key=lambda folder: _last_used(folder))
        sizes = {folder: _size(folder) for folder in others}
        while others and own + needed + sum(sizes[folder] for folder in others) > limit:
            shutil.rmtree(others.pop(0), ignore_errors=True)
        free = shutil.disk_usage(self.folder).free
        if needed > free:
            raise OutputError(
                f"features.folder={str(self.root)!r}: the features take {needed / GIB:.1f} GiB more and the disk has "
                f"{free / GIB:.1f} GiB; give a folder with room, or a smaller scale or model.embedding_dim"
            )

    def _others(self) -> list[Path]:
        """Folders of other keys."""
        return [path.parent for path in self.root.glob(f"*/{_KEY_FILE}") if path.parent != self.folder]


def _last_used(folder: Path) -> float:
    return (folder / _KEY_FILE).stat().st_mtime


def _size(folder: Path) -> int:
    """Bytes of all files below a folder."""
    files = [Path(path) / name for path, _, names in os.walk(folder) for name in names]
    return sum(path.stat().st_size for path in files if path.is_file())
