"""Base of the writers of predictions: skips complete images, and refuses a folder of another model or setting."""

from __future__ import annotations

import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.data.sample import Batch
from rca_lightning.evaluation.protocol import describe_file
from rca_lightning.io.output_folder import Existing, PredictionFolder

logger = logging.getLogger(__name__)


class PredictionWriter(BasePredictionWriter, ABC):
    """Writes each prediction as soon as it is computed; a subclass defines the files.

    Args:
        output_dir: folder of the results.
        kinds: see `PredictionFolder`.
        existing: "skip" what is complete, "overwrite" everything.
    """

    @check_arguments
    def __init__(self, output_dir: str | Path, kinds: Mapping[str, str], existing: Existing) -> None:
        super().__init__(write_interval="batch")
        self.folder = PredictionFolder(output_dir, kinds, existing=existing)
        self.written = 0

    @property
    def output_dir(self) -> Path:
        """Folder of the results."""
        return self.folder.root

    @abstractmethod
    def describe(self, module: L.LightningModule) -> dict[str, Any]:
        """Settings that predictions depend on, as JSON values; refuses a module whose predictions it cannot write."""

    @abstractmethod
    def write(self, prediction: dict[str, Any], image: Tensor, batch: Batch, index: int) -> None:
        """Writes the prediction of `image (3, H, W)`, the one at `index` of the batch."""

    def finish(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Called on every rank once its images are predicted, before a barrier."""

    def summarise(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Called on the first rank once all images are written."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Tells the data module which images are complete, before it makes its loader."""
        if stage != "predict":
            return
        self.written = 0
        # Without a data module the images are computed and then not written again.
        leave_out = getattr(getattr(trainer, "datamodule", None), "leave_out_of_prediction", None)
        if leave_out is not None:
            callbacks = trainer.callbacks  # type: ignore[attr-defined]
            folders = [callback.folder for callback in callbacks if isinstance(callback, PredictionWriter)]
            leave_out(_InAll([folder.done() for folder in folders]))

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Checks the folder, as the module has the weights of the checkpoint from now on."""
        # Every rank checks, so that none waits at the barrier for one that has raised.
        checkpoint = trainer.ckpt_path
        settings = {
            "checkpoint": None if checkpoint is None else Path(checkpoint).name,
            # On the rank that writes the settings; checkpoints are large, and the others do not compare it.
            "checkpoint_sha256": (describe_file(checkpoint) or {}).get("sha256") if trainer.is_global_zero else None,
            "weights": getattr(pl_module, "weights_on_record", None),
            "weights_digest": weights_digest(pl_module),
            **self.describe(pl_module),
        }
        self.folder.prepare(settings)
        # Lightning passes the indices of images to writers; here images have names.
        warnings.filterwarnings("ignore", message="Couldn't infer the batch indices")
        trainer.strategy.barrier("predictions folder")
        if trainer.is_global_zero:
            self.folder.begin()
        trainer.strategy.barrier("predictions folder is ready")

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
        """Writes the images of one batch."""
        for index, (image, result) in enumerate(zip(batch["image"], prediction, strict=True)):
            if self.folder.claim(result["image_id"]):
                self.write(result, image, batch, index)
                self.written += 1

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends and logs the writing."""
        self.finish(trainer, pl_module)
        trainer.strategy.barrier("predictions written")
        if trainer.is_global_zero:
            self.folder.end()
            self.summarise(trainer, pl_module)
        logger.info("wrote %d images to %s", self.written, self.output_dir)


class _InAll(Container[str]):
    """Images that are done in every folder."""

    def __init__(self, done: Sequence[Container[str]]) -> None:
        self._done = done

    def __contains__(self, image_id: object) -> bool:
        return all(image_id in one for one in self._done)


def weights_digest(module: L.LightningModule) -> str:
    """Digest of the weights, the same on every run."""
    total = sum(float(value.double().abs().sum()) for value in module.state_dict().values())
    return f"{total:.6e}"
