"""A callback that ends a run early, as a job limit would."""

from __future__ import annotations

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
