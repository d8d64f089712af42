"""Resuming: finds the checkpoint of `--ckpt_path last`, and the batch and the loop counters to go on from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.errors import DamagedError

logger = logging.getLogger(__name__)


def seen_batches(trainer: L.Trainer | None) -> int:
    """Number of batches of the current epoch that the run before a resumed one trained on; 0 in every other epoch.

    Args:
        trainer: at the start of an epoch; or `None`.
    """
    if trainer is None:
        return 0
    loop: Any = trainer.fit_loop  # its counters are no public part of Lightning
    return int(loop.epoch_loop.batch_progress.current.ready) if loop.restarting else 0


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


_warn = rank_zero_only(logger.warning)


def find_last(trainer: L.Trainer) -> Path | None:
    """Finds the latest readable checkpoint of a Trainer's earlier runs.

    Searches the folders of its `ModelCheckpoint`s, earlier versions of its logger included, and the checkpoints that
    Lightning writes to `default_root_dir` under SLURM. `last*` and `hpc_ckpt_*` come before all others, newer before
    older. A damaged file is skipped with a warning.

    Args:
        trainer: with its callbacks and loggers.

    Returns:
        The path; `None` where there is no checkpoint at all.

    Raises:
        DamagedError: if there are checkpoints and none can be read.
        WeightsError: if the first that can be read is of a later format, or no checkpoint of `rca fit`.
    """
    files = {path for folder in _folders(trainer) for path in folder.glob("*.ckpt") if path.is_file()}
    files |= set(Path(trainer.default_root_dir).glob("hpc_ckpt_*.ckpt"))
    damaged: DamagedError | None = None
    for path in sorted(files, key=_order):
        error = _damage(path)
        if error is None:
            return path
        _warn("%s; the one before it is looked for", error)
        damaged = damaged or error
    if damaged is not None:
        raise damaged  # better than to start anew unasked
    return None


def _folders(trainer: L.Trainer) -> Iterator[Path]:
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint):
            if callback.dirpath is not None:
                yield Path(callback.dirpath)
            elif trainer.loggers:
                log = trainer.loggers[0]
                yield from (Path(log.save_dir or trainer.default_root_dir) / str(log.name)).glob("*/checkpoints")
            else:
                yield Path(trainer.default_root_dir) / "checkpoints"


def _order(path: Path) -> tuple[bool, int, str]:
    resumable = path.name.startswith(("last", "hpc_ckpt_"))
    return not resumable, -path.stat().st_mtime_ns, str(path)


def _damage(path: Path) -> DamagedError | None:
    try:
        read_checkpoint(path, map_location="meta")  # no tensor is read
    except DamagedError as error:
        return error
    return None
