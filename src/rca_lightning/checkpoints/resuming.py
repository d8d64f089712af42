"""Resuming: the batch and the loop counters to go on from."""

from __future__ import annotations

import warnings
from typing import Any

import lightning as L


def seen_batches(trainer: L.Trainer | None) -> int:
    """Number of batches of the current epoch that the run before a resumed one trained on; 0 in every other epoch.

    Args:
        trainer: at the start of an epoch; or `None`.
    """
    if trainer is None:
        return 0
    loop: Any = trainer.fit_loop  # its counters are no public part of Lightning
    return int(loop.epoch_loop.batch_progress.current.ready) if loop.restarting else 0


def is_within_epoch(trainer: L.Trainer | None) -> bool:
    """Whether some batches of the current training epoch are done, and not all.

    Args:
        trainer: in training; or `None`.
    """
    if trainer is None:
        return False
    batches: Any = trainer.fit_loop.epoch_loop.batch_progress
    return bool(batches.current.ready) and not batches.is_last_batch


def silence_loader_warning() -> None:
    """Silences the warning of Lightning about loaders without a state; ours skip the batches that were seen."""
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch")


def rewind_to_epoch_end(fit_loop: dict[str, Any]) -> None:
    """Sets the loop counters of a checkpoint between two epochs to the end of the first, in place.

    From a checkpoint written right after the last batch of an epoch Lightning goes on with the next epoch: without
    validation and without the hooks in between; resumed there twice, it trains an epoch too many. From one written at
    the start of an epoch it takes the counts of the epoch before for those of this one and leaves it out.

    Args:
        fit_loop: state of the training loop in the checkpoint.
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


def match_epoch_end(trainer: L.Trainer) -> None:
    """Lets a run that goes on between two epochs take the first as ended, whatever an epoch is in this run.

    Lightning takes an epoch for unfinished if it has more batches now, such as with another batch size, and trains on
    one batch more if the epoch is not followed by a validation.

    Args:
        trainer: at the start of training.
    """
    fit_loop: Any = trainer.fit_loop
    loop = fit_loop.epoch_loop
    batches = loop.batch_progress
    if fit_loop.restarting and batches.is_last_batch and batches.current.completed:
        for count in ("ready", "started", "processed", "completed"):
            setattr(batches.current, count, trainer.num_training_batches)
        loop.val_loop._has_run |= not loop._should_check_val_epoch()


def begin_epoch(trainer: L.Trainer) -> None:
    """Lets an epoch that begins be none that is gone on with; Lightning forgets it where the one before only ended.

    Args:
        trainer: at the start of an epoch.
    """
    trainer.fit_loop.epoch_loop.restarting = False
