"""How training goes on within an epoch: what the counters of a checkpoint of Lightning mean for the data."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L


def seen_batches(trainer: L.Trainer | None) -> int:
    """Batches of the epoch that a resumed run begins in which were trained on before; 0 in every other epoch.

    Args:
        trainer: one that asks for its first batch of an epoch; or `None`.
    """
    if trainer is None:
        return 0
    loop: Any = trainer.fit_loop.epoch_loop  # its counters are no public part of Lightning
    return int(loop.batch_progress.current.ready) if loop.restarting else 0


def expect_whole_loaders() -> None:
    """Silence Lightning, which takes loaders for resumable by methods of theirs; ours are told where to begin."""
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")


def end_last_batch(fit_loop: dict[str, Any]) -> None:
    """Let a checkpoint written right after the last batch of an epoch go on with the end of that epoch, in place.

    Lightning would go on with the next epoch: without validation, without the hooks at the end of the epoch and at the
    start of the next; resumed at such a point twice, it would train an epoch too many.

    Args:
        fit_loop: counters of the training loop in the checkpoint.
    """
    batches = fit_loop.get("epoch_loop.batch_progress")
    validation = fit_loop.get("epoch_loop.val_loop.batch_progress")
    if not batches or not validation or not batches["is_last_batch"]:
        return
    for counts in (batches["total"], batches["current"]):
        if counts["completed"] != counts["processed"] - 1:
            return
    for counts in (batches["total"], batches["current"]):
        counts["completed"] = counts["processed"]
    # Validation of this epoch counts as begun and without a batch.
    validation["total"].update(ready=1, started=1, processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False
