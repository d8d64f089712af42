"""A folder of predictions: one file of each kind for an image, all made by one model with one setting."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Literal

from rca_lightning.errors import OutputError
from rca_lightning.io.atomic import check_writable, output_errors, write_atomically

Existing = Literal["skip", "overwrite"]
_SETTINGS_FILE = "predict.json"


class PredictionFolder:
    """Knows which files an image has, which images are complete, and by which settings they were made.

    Args:
        root: the folder.
        kinds: subfolder to ending of its files, such as `{"masks": ".png"}`; the first one decides which images there
            are.
        existing: "skip" what is complete, "overwrite" everything; what another setting has made is then removed, also
            of images that are not predicted now.
    """

    def __init__(self, root: str | Path, kinds: Mapping[str, str], *, existing: Existing = "skip") -> None:
        self.root = Path(root)
        self.kinds = dict(kinds)
        self.existing = existing
        self._seen: set[str] = set()
        self._settings: dict[str, Any] = {}

    def paths(self, image_id: str) -> dict[str, Path]:
        """The files of an image by kind."""
        return {kind: self.root / kind / f"{image_id}{ending}" for kind, ending in self.kinds.items()}

    def is_complete(self, image_id: str) -> bool:
        """Whether every file of an image is there."""
        return all(path.is_file() for path in self.paths(image_id).values())

    def complete_ids(self) -> list[str]:
        """Images whose every file is there, sorted."""
        kind, ending = next(iter(self.kinds.items()))
        found = (path.name.removesuffix(ending) for path in (self.root / kind).glob(f"*{ending}"))
        return sorted(image_id for image_id in found if self.is_complete(image_id))

    def done(self) -> set[str]:
        """Images that need no prediction; starts a new run.

        Raises:
            OutputError: if the folder cannot be looked into.
        """
        self._seen.clear()
        with self.output_errors():
            return set() if self.existing == "overwrite" else set(self.complete_ids())

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Make the folders, and refuse one that holds predictions made otherwise.

        Args:
            settings: what the predictions depend on, as JSON values.

        Raises:
            OutputError: if the folder cannot be made or written to, or was made by other settings.
        """
        self._settings = json.loads(json.dumps(dict(settings) | {"overwriting": False}))
        with self.output_errors():
            self._compare()
        check_writable("output_dir", self.root, *(path.parent for path in self.paths("any").values()))

    def begin(self) -> None:
        """Write down the settings, and remove what is to be overwritten of other ones; for one process."""
        other = self.existing == "overwrite" and self._differences()
        # An overwriting that was cut short leaves results of two settings; the mark makes the next run refuse them.
        self._write_settings(overwriting=self.existing == "overwrite")
        if other:
            with self.output_errors():
                for path in self._files():
                    path.unlink(missing_ok=True)

    def end(self) -> None:
        """Write down that all of it is of one setting; for one process."""
        self._write_settings(overwriting=False)

    def claim(self, image_id: str) -> bool:
        """Whether the files of an image are still to be written.

        Raises:
            OutputError: if the id cannot be the name of a file, or came before.
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

    def _compare(self) -> None:
        path = self.root / _SETTINGS_FILE
        if not path.is_file() and (file := next(self._files(), None)) is not None:
            raise OutputError(
                f"output_dir={str(self.root)!r} holds {file.relative_to(self.root)} but no {_SETTINGS_FILE}, so what "
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
        """Settings of what is there that are not those of now, or that they cannot be read but overwritten."""
        path = self.root / _SETTINGS_FILE
        if not path.is_file():
            return []
        try:
            found = _read_settings(path)
        except OutputError as error:
            if self.existing == "overwrite":
                return [str(error)]
            raise
        different = [key for key in self._settings if found.get(key) != self._settings[key]]
        return [f"{key}: {found.get(key)!r} there, {self._settings[key]!r} now" for key in different]

    def _files(self) -> Iterator[Path]:
        """Every file of every kind."""
        for kind, ending in self.kinds.items():
            yield from (self.root / kind).glob(f"*{ending}")

    def _write_settings(self, *, overwriting: bool) -> None:
        text = json.dumps(self._settings | {"overwriting": overwriting}, indent=2) + "\n"
        with self.output_errors():
            write_atomically(self.root / _SETTINGS_FILE, lambda file: file.write(text.encode()))

    def output_errors(self) -> AbstractContextManager[None]:
        """Say of a refusal by the file system which argument it is about."""
        return output_errors("output_dir", self.root)


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise OutputError(f"{path} is not JSON ({error}); delete it, or give existing='overwrite'") from error
    if not isinstance(settings, dict):
        raise OutputError(f"{path} holds no settings; delete it, or give existing='overwrite'")
    return settings
