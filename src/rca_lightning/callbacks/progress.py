"""Logs progress as plain lines, for batch jobs without a terminal."""

from __future__ import annotations

import logging
import time
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.errors import ArgumentError

logger = logging.getLogger(__name__)


class ProgressLines(L.Callback):
    """Logs epoch, batch and loss, at most every `seconds`.

    Args:
        seconds: the shortest time between two lines.
    """

    def __init__(self, seconds: float = 30.0) -> None:
        if seconds < 0:
            raise ArgumentError("seconds", seconds, "give 0 or more")
        self.seconds = seconds
        self._last = time.monotonic()

    @rank_zero_only
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Epoch, batch and loss."""
        loss = trainer.callback_metrics.get("train/loss")
        about = "" if loss is None else f", loss {float(loss):.3f}"
        epoch = f"fit: epoch {trainer.current_epoch + 1} of {trainer.max_epochs}"
        self._line(f"{epoch}, batch {batch_idx + 1} of {trainer.num_training_batches}{about}")

    @rank_zero_only
    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Images scored."""
        self._count("validate", trainer.num_val_batches)

    @rank_zero_only
    def on_predict_batch_end(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        """Images predicted."""
        self._count("predict", trainer.num_predict_batches)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Count from the start."""
        self._done = 0

    on_predict_start = on_validation_start

    def _count(self, what: str, totals: list[int | float] | list[int]) -> None:
        self._done += 1
        self._line(f"{what}: batch {self._done} of {sum(totals):g}")

    def _line(self, text: str) -> None:
        now = time.monotonic()
        if now - self._last >= self.seconds:
            self._last = now
            logger.info("%s", text)
