"""Which file `rca fit --ckpt_path last` goes on from."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.errors import DamagedError

logger = logging.getLogger(__name__)
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
