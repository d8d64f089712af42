"""Callbacks with which a run can be ended early, as a job limit would."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import lightning as L


class StopAfter(L.Callback):
    """Stops the Trainer when so many epochs are done.

    Args:
        epochs: how many.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


class SlowBatches(L.Callback):
    """Leaves a file for each training batch in the folder of the run, and time to send a signal."""

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Mark and wait."""
        number = trainer.current_epoch * trainer.num_training_batches + batch_idx
        Path(trainer.default_root_dir, f"batch {number} {os.getpid()}").touch()
        time.sleep(0.05)


class NotesMemory(L.Callback):
    """Notes what training begins with.

    Attributes:
        at_start: regions in memory, valid prototypes, and steps done.
    """

    at_start: tuple[int, int, int]

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        """Count."""
        valid = pl_module.network.aggregation.valid
        self.at_start = int(pl_module.memory.counts.sum()), int(valid.sum()), trainer.global_step
