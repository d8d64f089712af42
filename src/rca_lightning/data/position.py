"""Where training goes on: Lightning counts batches in a checkpoint, and leaves it to the data to begin there."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L


def next_batch(trainer: L.Trainer | None) -> tuple[int, int]:
    """The batch that is trained on next.

    Args:
        trainer: one that is about to train, its counters restored; or `None`.

    Returns:
        Its epoch, and how many batches of that epoch were trained on before.
    """
    if trainer is None:
        return 0, 0
    loop: Any = trainer.fit_loop
    epochs, batches = loop.epoch_progress.current, loop.epoch_loop.batch_progress
    # A checkpoint written at the end of an epoch counts it as processed while `current_epoch` does not yet.
    epoch: int = epochs.processed
    if epochs.started <= epoch:
        return epoch, 0
    if batches.is_last_batch:
        return epoch + 1, 0
    if batches.current.processed:
        # Lightning takes loaders for resumable by methods of theirs; this one is told where to begin instead.
        warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")
    return epoch, batches.current.processed
