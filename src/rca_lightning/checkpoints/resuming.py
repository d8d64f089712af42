"""Where a training goes on: the checkpoint that `--ckpt_path last` means, and the batch within its epoch."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.errors import DamagedError

logger = logging.getLogger(__name__)


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


_warn = rank_zero_only(logger.warning)


def find_last(trainer: L.Trainer) -> Path | None:
    """The latest whole checkpoint of a Trainer's runs, before it has run.

    Looked at are the folders in which its `ModelCheckpoint`s write, those of earlier versions of its logger among them,
    and the checkpoints that Lightning leaves in `default_root_dir` for SLURM. Those named `last*` and `hpc_ckpt_*` come
    first, the latest of them before the others; then any other. A file that cannot be read, such as half a one, is
    passed over with a warning.

    Args:
        trainer: with its callbacks and loggers.

    Returns:
        The path; `None` where there is no checkpoint at all.

    Raises:
        DamagedError: if there are checkpoints and none can be read: better than to start anew unasked.
        WeightsError: if the first that can be read is of a later format, or no checkpoint of `rca fit`.
    """
    folders = list(_folders(trainer))
    files = {path for folder in folders for path in folder.glob("*.ckpt") if path.is_file()}
    root = Path(trainer.default_root_dir)
    files |= set(root.glob("hpc_ckpt_*.ckpt"))
    return _first_whole(sorted(files, key=_order))


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


def _first_whole(paths: Iterable[Path]) -> Path | None:
    refused: DamagedError | None = None
    for path in paths:
        damage = _damage(path)
        if damage is None:
            return path
        _warn("%s; the one before it is looked for", damage)
        refused = refused or damage
    if refused is not None:
        raise refused
    return None


def _damage(path: Path) -> DamagedError | None:
    try:
        read_checkpoint(path, map_location="meta")  # no tensor is read
    except DamagedError as error:
        return error
    return None
