"""Writes predictions: seeds, pseudo labels, overlays."""

from __future__ import annotations

import json
import logging
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from PIL import Image

from rca_lightning.atomic import write_atomically
from rca_lightning.data.palette import voc_palette
from rca_lightning.data.sample import Batch
from rca_lightning.errors import ArgumentError, OutputError
from rca_lightning.module import RCAModule
from rca_lightning.pseudo_labels.background import threshold_background
from rca_lightning.pseudo_labels.multiscale import Seeds
from rca_lightning.visualization import denormalise, overlay_mask

logger = logging.getLogger(__name__)

_SETTINGS_FILE = "predict.json"
_ATTENTION_THRESHOLD = 0.7
_CAM_THRESHOLD = 0.2


class PseudoLabelWriter(BasePredictionWriter):
    """Writes each prediction as soon as it is there, whole or not at all.

    For an image id it writes `cams/<id>.npz` (`maps` float16 `(K, H, W)` in `[0, 1]`, `classes` int64 `(K,)`, `size`
    int64 `(2,)` height and width; read with `numpy.load(..., allow_pickle=False)`), `pseudo_labels/<id>.png` (mode P,
    VOC palette, size of the photograph) and, if asked, `overlays/<id>.jpg`. Images that
    are complete already are not computed again.

    Args:
        output_dir: folder of the results.
        background_threshold: strength in `[0, 1]` a class map must exceed; the one that `rca validate` reports
            on images with masks is a good start. None: 0.7 for the attention, which is flat and wide, and 0.2 for the
            peaked maps of the CAM heads; about what was best on VOC photographs.
        overlays: whether to write the labels over the photograph as well.
        existing: "skip" what is complete, "overwrite" everything.

    Raises:
        OutputError: when predicting starts, if the folder cannot be made or written to, or holds predictions of
            another model or setting; later, if two images have one id, or an id cannot be a file name.
    """

    def __init__(
        self,
        output_dir: str,
        background_threshold: float | None = None,
        overlays: bool = False,
        existing: Literal["skip", "overwrite"] = "skip",
    ) -> None:
        super().__init__(write_interval="batch")
        if background_threshold is not None and not 0 <= background_threshold <= 1:
            raise ArgumentError("background_threshold", background_threshold, "give a number in [0, 1]")
        self.output_dir = Path(output_dir)
        self.background_threshold = _CAM_THRESHOLD if background_threshold is None else background_threshold
        self._threshold_is_given = background_threshold is not None
        self.overlays = overlays
        self.existing = existing
        self._seen: set[str] = set()
        self._written = 0
        self._settings: dict[str, Any] = {}

    def is_complete(self, image_id: str) -> bool:
        """Whether every file of an image is there."""
        return all(path.is_file() for path in self._paths(image_id).values())

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tell the data module which images are done, before it makes its loader."""
        if stage != "predict":
            return
        self._seen.clear()
        self._written = 0
        with _output_errors(self.output_dir):
            done = set() if self.existing == "overwrite" else self._complete_ids()
        # Without a data module the images are computed and then not written again.
        leave_out = getattr(getattr(trainer, "datamodule", None), "leave_out_of_prediction", None)
        if done and leave_out is not None:
            leave_out(done)
            logger.info("%d images are complete in %s and are skipped", len(done), self.output_dir)

    def _complete_ids(self) -> set[str]:
        labels = self.output_dir / "pseudo_labels"
        return {path.stem for path in labels.glob("*.png") if self.is_complete(path.stem)}

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Check the folder; only now does the module have the weights of the checkpoint."""
        if not isinstance(pl_module, RCAModule):
            raise ArgumentError("model", type(pl_module).__name__, "PseudoLabelWriter writes predictions of RCAModule")
        # Every rank looks, so that none waits for one that has raised.
        reads_attention = pl_module.hparams["final_map"] == "attention" and pl_module.network.aggregation is not None
        if reads_attention and not self._threshold_is_given:
            self.background_threshold = _ATTENTION_THRESHOLD
        with _output_errors(self.output_dir):
            self._settings = self._checked_settings(pl_module, trainer.ckpt_path)
            self._make_folders()
        trainer.strategy.barrier("predictions folder")
        if trainer.is_global_zero:
            with _output_errors(self.output_dir):
                self._write_settings(overwriting=self.existing == "overwrite")

    def _make_folders(self) -> None:
        for folder in (self.output_dir, *(path.parent for path in self._paths("any").values())):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):  # permissions alone do not tell of a disk mounted read-only
                pass

    def _checked_settings(self, module: RCAModule, checkpoint: str | Path | None) -> dict[str, Any]:
        settings: dict[str, Any] = json.loads(json.dumps(self._describe(module, checkpoint)))
        path = self.output_dir / _SETTINGS_FILE
        if path.is_file() and self.existing == "skip":
            found = _read_settings(path)
            different = [key for key in settings if found.get(key) != settings[key]]
            if different:
                changes = "; ".join(f"{key}: {found.get(key)!r} there, {settings[key]!r} now" for key in different)
                raise OutputError(
                    f"output_dir={str(self.output_dir)!r} holds predictions made otherwise ({changes}). "
                    "Give another output_dir, or existing='overwrite'"
                )
        return settings

    def _write_settings(self, *, overwriting: bool) -> None:
        # An overwriting that was cut short leaves results of two settings; the mark makes the next run refuse them.
        text = json.dumps(self._settings | {"overwriting": overwriting}, indent=2) + "\n"
        write_atomically(self.output_dir / _SETTINGS_FILE, lambda file: file.write(text.encode()))

    def _describe(self, module: RCAModule, checkpoint: str | Path | None) -> dict[str, Any]:
        names = ("num_classes", "backbone", "final_map", "scales", "flip", "predict_tags", "tag_threshold")
        return {
            "checkpoint": None if checkpoint is None else Path(checkpoint).name,
            "weights_digest": _digest(module),
            "overwriting": False,
            "background_threshold": self.background_threshold,
            **{name: module.hparams[name] for name in names},
        }

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: list[dict[str, Any]],
        batch_indices: Sequence[int] | None,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write the images of one batch."""
        for image, result in zip(batch["image"], prediction, strict=True):
            image_id: str = result["image_id"]
            self._check_id(image_id)
            if self.existing == "skip" and self.is_complete(image_id):
                continue
            self._write(image_id, result["seeds"], image)
            self._written += 1

    def _check_id(self, image_id: str) -> None:
        if not image_id or image_id in {".", ".."} or any(mark in image_id for mark in "/\\\0"):
            raise OutputError(f"image_id={image_id!r} cannot be a file name; rename the image")
        if image_id in self._seen:
            raise OutputError(
                f"image_id={image_id!r} belongs to two images, and one result would overwrite the other; "
                "rename one of them"
            )
        self._seen.add(image_id)

    def _paths(self, image_id: str) -> dict[str, Path]:
        paths = {
            "cams": self.output_dir / "cams" / f"{image_id}.npz",
            "pseudo_labels": self.output_dir / "pseudo_labels" / f"{image_id}.png",
        }
        if self.overlays:
            paths["overlays"] = self.output_dir / "overlays" / f"{image_id}.jpg"
        return paths

    def _write(self, image_id: str, seeds: Seeds, image: torch.Tensor) -> None:
        label = threshold_background(seeds.maps, self.background_threshold)
        if len(seeds.classes):
            # Label images count within the kept maps; masks count over all classes.
            lookup = torch.cat([seeds.classes.new_zeros(1), seeds.classes + 1]).to(torch.uint8)
            label = lookup[label.long()]
        pixels = label.numpy()
        paths = self._paths(image_id)
        write_atomically(
            paths["cams"],
            lambda file: np.savez_compressed(
                file,
                maps=seeds.maps.numpy().astype(np.float16),
                classes=seeds.classes.numpy(),
                size=np.array(pixels.shape, dtype=np.int64),
            ),
        )
        picture = Image.fromarray(pixels)
        picture.putpalette(voc_palette().flatten().tolist())
        write_atomically(paths["pseudo_labels"], lambda file: picture.save(file, format="PNG"))
        if self.overlays:
            drawn = Image.fromarray(overlay_mask(denormalise(image), pixels))
            write_atomically(paths["overlays"], lambda file: drawn.save(file, format="JPEG", quality=90))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Say what was written."""
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            self._write_settings(overwriting=False)
        logger.info("wrote %d images to %s", self._written, self.output_dir)


@contextmanager
def _output_errors(folder: Path) -> Iterator[None]:
    """Say of a refusal by the file system which argument it is about."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"output_dir={str(folder)!r} cannot be written to ({error}); give a folder where files can be made"
        ) from error


def _read_settings(path: Path) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise OutputError(f"{path} is not JSON ({error}); delete it, or give existing='overwrite'") from error
    if not isinstance(settings, dict):
        raise OutputError(f"{path} holds no settings; delete it, or give existing='overwrite'")
    return settings


def _digest(module: RCAModule) -> str:
    """A number that tells trained weights apart, the same on every run."""
    return f"{sum(float(value.double().abs().sum()) for value in module.network.state_dict().values()):.6e}"
