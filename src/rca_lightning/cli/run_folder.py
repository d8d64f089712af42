"""Folder of a run of `rca masks`: its files, and what of them belongs to other settings or photographs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

from rca_lightning.data.tag_files import read_tag_names
from rca_lightning.errors import DataError, OutputError
from rca_lightning.io.atomic import check_writable, lock, output_errors, write_atomically
from rca_lightning.io.output_folder import PredictionFolder

KINDS = {"pseudo_labels": ".png", "cams": ".npz", "overlays": ".jpg"}
"""What is written of each photograph; the images that are complete have all of them."""

Settings = dict[str, Any]


class RunFolder:
    """Files of a run, and its state: with which settings the model and the labels were made.

    Args:
        out: the folder; `labels`, `overlays`, `rca.ckpt`, `classes.txt`, `tags.csv` and `run.json` are for the user,
            `work` is what a later run goes on from.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        self.work = self.out / "work"
        self.labels, self.overlays, self.maps = self.out / "labels", self.out / "overlays", self.work / "maps"
        self.checkpoint, self.segmenter = self.out / "rca.ckpt", self.out / "segmenter.ckpt"
        self.segmentation = self.work / "segmentation"
        self.classes, self.tags = self.out / "classes.txt", self.out / "tags.csv"
        self._state_file = self.work / "state.json"
        self.state: dict[str, Settings] = {}

    @contextmanager
    def opened(self) -> Iterator[RunFolder]:
        """Makes the folder, locks it against other runs and reads its state.

        Raises:
            OutputError: it takes no files, another run uses it, or its state is damaged.
        """
        check_writable("out", self.out, self.work)
        held = os.open(self.work, os.O_RDONLY)
        try:
            if not lock(held, wait=False):
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

    def remove_labels(self, image_ids: Collection[str] | None = None) -> None:
        """Remove label, maps and overlay of these photographs, or of all with the record of how they were made."""
        folder = self.predictions()
        with self.output_errors():
            if image_ids is not None:
                for path in (
                    path
                    for one in (folder, self.segmented())
                    for image_id in image_ids
                    for path in one.paths(image_id).values()
                ):
                    path.unlink(missing_ok=True)
                return
            for kind, ending in KINDS.items():
                for path in folder.folder(kind).glob(f"*{ending}"):
                    path.unlink(missing_ok=True)
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

    def retagged(self, tags: Mapping[str, tuple[str, ...] | None], images: Mapping[str, Path]) -> list[str]:
        """Photographs with a label whose tags or whose files have changed since.

        Args:
            tags: names of the tags of photographs now.
            images: file of each photograph now.
        """
        try:
            before = {image_id: tuple(names) for _, image_id, names in read_tag_names(self.tags)}
        except (DataError, OSError):
            return []
        changed = []
        for image_id, path in images.items():
            try:
                made = (self.labels / f"{image_id}.png").stat().st_mtime
            except OSError:
                continue
            before_now = before.get(image_id), tags.get(image_id)
            if before_now[0] != before_now[1] or path.stat().st_mtime > made:
                changed.append(image_id)
        return changed

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
