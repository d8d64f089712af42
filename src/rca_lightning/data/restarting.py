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
    loop: Any = trainer.fit_loop  # its counters are no public part of Lightning
    return int(loop.epoch_loop.batch_progress.current.ready) if loop.restarting else 0


def expect_whole_loaders() -> None:
    """Silence Lightning, which takes loaders for resumable by methods of theirs; ours are told where to begin."""
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")


def settle(fit_loop: dict[str, Any]) -> None:
    """Bring the counters of a checkpoint to where Lightning goes on exactly, in place.

    Written right after the last batch of an epoch, Lightning would go on with the next epoch: without validation,
    without the hooks at the end of the epoch and at the start of the next; resumed at such a point twice, it would
    train an epoch too many. Here it goes on with the end of the epoch. Written at the start of an epoch, Lightning
    would take the counts of the epoch before for those of this one and leave it out. Here it goes on from the end of
    the one before.

    Args:
        fit_loop: counters of the training loop in the checkpoint.
    """
    if fit_loop:
        _end_last_batch(fit_loop["epoch_loop.batch_progress"], fit_loop["epoch_loop.val_loop.batch_progress"])
        _end_last_epoch(fit_loop["epoch_progress"])


def _end_last_batch(batches: dict[str, Any], validation: dict[str, Any]) -> None:
    counts = (batches["total"], batches["current"])
    if not batches["is_last_batch"] or any(count["completed"] != count["processed"] - 1 for count in counts):
        return
    for count in counts:
        count["completed"] = count["processed"]
    # Validation of this epoch counts as begun and without a batch.
    validation["total"].update(ready=1, started=1, processed=0, completed=0)
    validation["current"].update(ready=0, started=0, processed=0, completed=0)
    validation["is_last_batch"] = False


def _end_last_epoch(epochs: dict[str, Any]) -> None:
    counts = (epochs["total"], epochs["current"])
    if any(
        not count["ready"] - 1 == count["started"] == count["processed"] == count["completed"] > 0 for count in counts
    ):
        return
    for count in counts:
        count["ready"] -= 1
        count["completed"] -= 1
