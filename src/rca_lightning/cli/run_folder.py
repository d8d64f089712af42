"""Folder of a run of `rca masks`: its files, and what of them belongs to other settings or photographs."""

from __future__ import annotations

import array
import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from rca_lightning.data.tag_files import iterate_tag_names
from rca_lightning.errors import ArgumentError, DataError, OutputError
from rca_lightning.io.atomic import check_writable, lock, output_errors, write_atomically
from rca_lightning.io.output_folder import PredictionFolder, scan_names

KINDS = {"pseudo_labels": ".png", "cams": ".npz", "overlays": ".jpg"}
"""What is written of each photograph; the images that are complete have all of them."""

Settings = dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A part of the photographs, which one of several processes works on.

    Attributes:
        number: from 1.
        count: of parts.

    Example:
        >>> Part.parse("2/3").rows(7)
        array([1, 4])
    """

    number: int
    count: int

    @classmethod
    def parse(cls, text: str) -> Part:
        """Reads "I/N".

        Raises:
            ArgumentError: it is something else, or I is not one of 1 to N.
        """
        number, stroke, count = text.partition("/")
        if not (stroke and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
            raise ArgumentError("shard", text, "give I/N, such as 1/8 for the first of eight parts; I is from 1 to N")
        return cls(int(number), int(count))

    def rows(self, length: int) -> npt.NDArray[np.int64]:
        """Numbers of its photographs of so many: every `count`-th, so that parts are alike."""
        return np.arange(self.number - 1, length, self.count, dtype=np.int64)


class RunFolder:
    """Files of a run, and its state: with which settings the model and the labels were made.

    Args:
        out: the folder; `labels`, `overlays`, `rca.ckpt`, `classes.txt`, `tags.csv` and `run.json` are for the user,
            `work` is what a later run goes on from.
        part: what this process works on, beside others that work on the other parts; None: on all, alone.

    Attributes:
        own: folder for what only this process writes, such as its log.
    """

    def __init__(self, out: Path, part: Part | None = None) -> None:
        self.out = out.absolute()
        self.work = self.out / "work"
        self.part = part
        self.own = self.work if part is None else self.work / "parts" / f"{part.number}-of-{part.count}"
        self.catalogue, self.hashes = self.work / "catalogue", self.own / "hashes.npz"
        self.labels, self.overlays, self.maps = self.out / "labels", self.out / "overlays", self.work / "maps"
        self.checkpoint, self.segmenter = self.out / "rca.ckpt", self.out / "segmenter.ckpt"
        self.segmentation = self.work / "segmentation"
        self.classes, self.tags = self.out / "classes.txt", self.out / "tags.csv"
        self._state_file, self._parts_file = self.work / "state.json", self.work / "parts.json"
        self.state: dict[str, Settings] = {}

    @contextmanager
    def opened(self) -> Iterator[RunFolder]:
        """Makes the folder, locks it against other runs and reads its state; parts do not lock each other out.

        Raises:
            OutputError: it takes no files, another run uses it, or its state is damaged.
        """
        check_writable("out", self.out, self.work, self.own)
        held = os.open(self.work, os.O_RDONLY)
        try:
            if not lock(held, shared=self.part is not None, wait=False):
                raise OutputError(f"out={str(self.out)!r}: another rca masks is at work there; let it end first")
            self.state = self._read_state()
            yield self
        finally:
            os.close(held)

    def output_errors(self) -> AbstractContextManager[None]:
        """Names `--out` in errors of the file system, such as a full disk."""
        return output_errors("out", self.out, "make room or give another folder; the same command then goes on")

    def predictions(self) -> PredictionFolder:
        """Label, maps and overlay of each photograph."""
        folders = {"pseudo_labels": self.labels, "cams": self.maps, "overlays": self.overlays}
        return PredictionFolder(self.work, KINDS, folders=folders)

    def segmented(self) -> PredictionFolder:
        """What the segmenter has drawn of photographs without tags."""
        return PredictionFolder(self.segmentation / "drawn", {"masks": ".png", "overlays": ".jpg"})

    @property
    def parts(self) -> int | None:
        """Number of parts that processes have worked on since the last report; None: nobody has."""
        try:
            return int(json.loads(self._parts_file.read_text())["count"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def begin_part(self) -> None:
        """Tell runs that come later that the work is parted."""
        assert self.part is not None
        self.write_json(self._parts_file, {"count": self.part.count})

    def end_parts(self) -> None:
        """Tell that the parts have been brought together."""
        with self.output_errors():
            self._parts_file.unlink(missing_ok=True)

    def remember(self, name: str, settings: Settings | None) -> None:
        """Keep the settings that something was made with; None: it is not there."""
        self.state.pop(name, None)
        if settings is not None:
            self.state[name] = settings
        self.write_json(self._state_file, self.state)

    def write_json(self, path: Path, content: Mapping[str, Any]) -> None:
        """Write a JSON file, whole or not at all."""
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        with self.output_errors():
            write_atomically(path, lambda file: file.write(text.encode("utf-8", "surrogateescape")))

    def remove_labels(self, image_ids: Iterable[str] | None = None) -> None:
        """Remove label, maps and overlay of these photographs, or of all with the record of how they were made."""
        folder = self.predictions()
        with self.output_errors():
            if image_ids is not None:
                folders = (folder, self.segmented())
                for image_id in image_ids:
                    for path in (path for one in folders for path in one.paths(image_id).values()):
                        path.unlink(missing_ok=True)
                return
            for kind, ending in KINDS.items():
                for name in scan_names(folder.folder(kind), ending):
                    (folder.folder(kind) / name).unlink(missing_ok=True)
            (self.work / "predict.json").unlink(missing_ok=True)

    def remove_fit(self) -> None:
        """Remove the checkpoints of rounds."""
        with self.output_errors():
            shutil.rmtree(self.work / "fit", ignore_errors=True)

    def remove_segmenter(self) -> None:
        """Remove the segmenter and all that it has drawn or learned from."""
        with self.output_errors():
            self.segmenter.unlink(missing_ok=True)
            shutil.rmtree(self.segmentation, ignore_errors=True)

    def retagged(self, now: Iterable[tuple[str, tuple[str, ...] | None, Path]]) -> Iterator[str]:
        """Photographs with a label whose tags or whose files have changed since.

        Args:
            now: id, names of the tags, and file of each photograph now.
        """
        try:
            before = _KnownTags(self.tags)
        except (DataError, OSError):
            return
        for image_id, names, path in now:
            try:
                made = (self.labels / f"{image_id}.png").stat().st_mtime
            except OSError:
                continue
            if not before.are(image_id, names) or path.stat().st_mtime > made:
                yield image_id

    def _read_state(self) -> dict[str, Settings]:
        try:
            state = json.loads(self._state_file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError) as error:
            raise OutputError(
                f"{self._state_file} cannot be read ({error}); delete {self.work} to begin anew"
            ) from error
        return state if isinstance(state, dict) else {}


class _KnownTags:
    """Tags of photographs by digests, 16 bytes each, whatever their order in the file.

    Args:
        path: file that `write_tag_file` has written.
    """

    def __init__(self, path: Path) -> None:
        ids, pairs = array.array("Q"), array.array("Q")
        for _, image_id, names in iterate_tag_names(path):
            ids.append(_digest(image_id))
            pairs.append(_digest(image_id, names))
        self._ids, self._pairs = (np.sort(np.frombuffer(one, dtype=np.uint64)) for one in (ids, pairs))

    def are(self, image_id: str, names: Sequence[str] | None) -> bool:
        """Whether these are the tags of a photograph; None: none are known."""
        if names is None:
            return not _holds(self._ids, _digest(image_id))
        return _holds(self._pairs, _digest(image_id, names))


def _digest(image_id: str, names: Sequence[str] = ()) -> int:
    text = "\n".join((image_id, *names)).encode("utf-8", "surrogatepass")
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _holds(digests: npt.NDArray[np.uint64], digest: int) -> bool:
    row = int(np.searchsorted(digests, np.uint64(digest)))
    return row < len(digests) and int(digests[row]) == digest


def changes(before: Mapping[str, Any], now: Mapping[str, Any], names: Iterable[str] | None = None) -> list[str]:
    """What differs between two settings, in words.

    Example:
        >>> changes({"threshold": 0.4}, {"threshold": 0.5})
        ['threshold 0.4 before, 0.5 now']
    """
    return [
        f"{name} {_short(before.get(name))} before, {_short(now[name])} now"
        for name in (now if names is None else names)
        if before.get(name) != now[name]
    ]


def _short(value: Any) -> str:
    if isinstance(value, list) and len(value) > 4:
        return f"{len(value)} of them"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
