"""Folder of predictions: one file of each kind for an image, all made by one model with one setting."""

from __future__ import annotations

import json
import os
import unicodedata
from collections.abc import Iterator, Mapping, Set
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import OutputError, first_other_class
from rca_lightning.io.atomic import check_writable, output_errors, write_atomically

Existing = Literal["skip", "overwrite"]
_SETTINGS_FILE = "predict.json"


_CLASSES = "class_names"  # a setting that folders of before 0.3 do not have
# Settings that tell where predictions come from, and decide none: `weights_digest` is what the network computes with.
_NOTES = ("checkpoint_sha256", "weights", "map_kind", "tags_calibrated", "threshold_source")
# Settings that folders have since they tell their kind of maps.
_NEWER = ("propagation_steps", "propagation_power", "propagation_affinity")


def stored_settings(folder: str | Path) -> dict[str, Any]:
    """Settings stored beside a folder of predictions, such as `pseudo_labels`; empty without, or if they are lost."""
    try:
        settings = json.loads((Path(folder).parent / _SETTINGS_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def stored_classes(folder: str | Path) -> list[str] | None:
    """Class names of a folder of predictions; `None` if there are none beside it."""
    names = stored_settings(folder).get(_CLASSES)
    return names if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


class PredictionFolder:
    """Lists the files of each image, the images that are complete, and the settings that they were made with.

    Args:
        root: the folder.
        kinds: subfolder and ending of its files, such as `{"masks": ".png"}`; the images are those with a file of the
            first kind.
        existing: "skip" what is complete, or "overwrite" everything; files that another setting has made are then
            removed, also those of images that are not predicted now.
        folders: of each kind, relative to the root or absolute, where it is not named like the kind.
    """

    @check_arguments
    def __init__(
        self,
        root: str | Path,
        kinds: Mapping[str, str],
        *,
        existing: Existing = "skip",
        folders: Mapping[str, str | Path] | None = None,
    ) -> None:
        self.root = Path(root)
        self.kinds = dict(kinds)
        self._folders = dict(folders or {})
        self.existing = existing
        self._seen: set[str] = set()
        self._settings: dict[str, Any] = {}

    def paths(self, image_id: str) -> dict[str, Path]:
        """The files of an image by kind."""
        return {kind: self.folder(kind) / f"{image_id}{ending}" for kind, ending in self.kinds.items()}

    def folder(self, kind: str) -> Path:
        """Where the files of a kind are."""
        return self.root / self._folders.get(kind, kind)

    def is_complete(self, image_id: str) -> bool:
        """Whether every file of an image is there."""
        return all(path.is_file() for path in self.paths(image_id).values())

    def complete_ids(self) -> list[str]:
        """Images whose every file is there, sorted."""
        return sorted(self._iterate_complete())

    def _iterate_complete(self) -> Iterator[str]:
        kind, ending = next(iter(self.kinds.items()))
        names = (name.removesuffix(ending) for name in scan_names(self.folder(kind), ending))
        image_ids = (unicodedata.normalize("NFC", name) for name in names)  # as ids are; some disks change the form
        return (image_id for image_id in image_ids if self.is_complete(image_id))

    def done(self) -> Set[str]:
        """Images that need no prediction, which are looked for on the disk when they are asked for; starts a new run.

        Raises:
            OutputError: if the folder cannot be looked into.
        """
        self._seen.clear()
        with self.output_errors():
            next(self._iterate_complete(), None)
        return frozenset() if self.existing == "overwrite" else _Complete(self)

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Makes the folders; refuses one that holds predictions made with other settings.

        Args:
            settings: that the predictions depend on, as JSON values.

        Raises:
            OutputError: if the folder cannot be made or written to, or was made by other settings.
        """
        self._settings = json.loads(json.dumps(dict(settings) | {"overwriting": False}))
        with self.output_errors():
            self._compare()
        check_writable("output_dir", self.root, *(path.parent for path in self.paths("any").values()))

    def begin(self) -> None:
        """Writes the settings, and removes files made with other ones if they are to be overwritten; on one rank."""
        other = self.existing == "overwrite" and self._differences()
        # A run that is cut short leaves results of two settings; this mark makes the next run refuse them.
        self._write_settings(overwriting=self.existing == "overwrite")
        if other:
            with self.output_errors():
                for path in self._files():
                    path.unlink(missing_ok=True)

    def end(self) -> None:
        """Writes that all files were made with one setting; on one rank."""
        self._write_settings(overwriting=False)

    def claim(self, image_id: str) -> bool:
        """Whether the files of an image are still to be written.

        Raises:
            OutputError: if the id cannot be the name of a file, or belongs to two images.
        """
        if not image_id or image_id in {".", ".."} or any(mark in image_id for mark in "/\\\0"):
            raise OutputError(f"image_id={image_id!r} cannot be a file name; rename the image")
        if image_id in self._seen:
            raise OutputError(
                f"image_id={image_id!r} belongs to two images, and one result would overwrite the other; "
                "rename one of them"
            )
        self._seen.add(image_id)
        return self.existing == "overwrite" or not self.is_complete(image_id)

    def settings(self) -> dict[str, Any]:
        """Settings that the files of an earlier run were made with; empty without such files."""
        return stored_settings(self.root / "any") if any(True for _ in self._files()) else {}

    def _compare(self) -> None:
        path = self.root / _SETTINGS_FILE
        file = next(self._files(), None)  # before the settings: another process may begin now, and writes them first
        if file is not None and not path.is_file():
            raise OutputError(
                f"output_dir={str(self.root)!r} holds {_short(file, self.root)} but no {_SETTINGS_FILE}, so what "
                "made it is not known; give another output_dir, or remove it yourself"
            )
        if self.existing == "overwrite":
            return
        if changes := self._differences():
            raise OutputError(
                f"output_dir={str(self.root)!r} holds predictions made otherwise ({'; '.join(changes)}). "
                "Give another output_dir, or existing='overwrite'"
            )

    def _differences(self) -> list[str]:
        """Stored settings that differ from those of this run; unreadable ones count if they are to be overwritten."""
        path = self.root / _SETTINGS_FILE
        if not path.is_file():
            return []
        try:
            stored = _read_settings(path)
        except OutputError as error:
            if self.existing == "overwrite":
                return [str(error)]
            raise
        changes = [
            f"{key}: {stored.get(key)!r} there, {self._settings.get(key)!r} now"
            for key in dict.fromkeys([*self._settings, *stored])
            if key not in (_CLASSES, *_NOTES) and stored.get(key) != self._settings.get(key)
            if key not in _NEWER or key in stored
        ]
        if (other := first_other_class(stored_classes(self.root / "any"), self._settings.get(_CLASSES))) is not None:
            changes.append(f"class {other[0]}: {other[1]!r} there, {other[2]!r} now")
        return changes

    def _files(self) -> Iterator[Path]:
        """All files of all kinds."""
        for kind, ending in self.kinds.items():
            yield from (self.folder(kind) / name for name in scan_names(self.folder(kind), ending))

    def _write_settings(self, *, overwriting: bool) -> None:
        text = json.dumps(self._settings | {"overwriting": overwriting}, indent=2) + "\n"
        with self.output_errors():
            write_atomically(self.root / _SETTINGS_FILE, lambda file: file.write(text.encode()))

    def output_errors(self) -> AbstractContextManager[None]:
        """Names the argument `output_dir` in errors of the file system."""
        return output_errors("output_dir", self.root)


class _Complete(Set[str]):
    """Images whose every file is there now; no list of them is kept."""

    def __init__(self, folder: PredictionFolder) -> None:
        self._folder = folder

    def __contains__(self, image_id: object) -> bool:
        return isinstance(image_id, str) and self._folder.is_complete(image_id)

    def __iter__(self) -> Iterator[str]:
        return self._folder._iterate_complete()

    def __len__(self) -> int:
        return sum(1 for _ in self)


def scan_names(folder: Path, ending: str) -> Iterator[str]:
    """Names in a folder that end so, in the order of the disk, one by one; none where there is no folder."""
    try:
        entries = os.scandir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return
    with entries:
        yield from (entry.name for entry in entries if entry.name.endswith(ending))


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise OutputError(f"{path} is not JSON ({error}); delete it, or give existing='overwrite'") from error
    if not isinstance(settings, dict):
        raise OutputError(f"{path} holds no settings; delete it, or give existing='overwrite'")
    if "rule" in settings:  # the name of this setting before version 0.2
        settings["background"] = settings.pop("rule")
    return settings


def _short(file: Path, root: Path) -> Path:
    return file.relative_to(root) if file.is_relative_to(root) else file
