"""The latest checkpoint of a Trainer's earlier runs, for `--ckpt_path last`."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.checkpoints.compatibility import SAVED_AT
from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.errors import DamagedError, WeightsError

logger = logging.getLogger(__name__)
_info, _warn = rank_zero_only(logger.info), rank_zero_only(logger.warning)


def find_last(trainer: L.Trainer, *, to_train: bool = False) -> Path | None:
    """Finds the latest readable checkpoint of a Trainer's earlier runs, whatever its name; says in the log which.

    Searches the folders of its `ModelCheckpoint`s, earlier versions of its logger included, what an
    `OnExceptionCheckpoint` has left, and the checkpoints that Lightning writes to `default_root_dir` under SLURM. The
    latest is the one that was saved last, also where the files were copied since. A damaged file is skipped with a
    warning.

    Args:
        trainer: with its callbacks and loggers.
        to_train: whether training is to go on from it: checkpoints of weights alone are skipped then.

    Returns:
        The path; `None` where there is no checkpoint at all.

    Raises:
        DamagedError: if there are checkpoints and none can be read.
        WeightsError: if the latest that can be read is of a later format, or no checkpoint of `rca fit`; if all hold
            weights alone and `to_train`.
    """
    folders = list(dict.fromkeys(_folders(trainer)))
    files = {path for folder, pattern in folders for path in folder.glob(pattern) if path.is_file()}
    unfit: WeightsError | None = None
    for found in sorted((_look_into(path) for path in files if not path.name.startswith(".")), reverse=True):
        if isinstance(found.error, DamagedError):
            _warn("%s; the one before it is looked for", found.error)
            unfit = unfit or found.error
        elif found.error is not None:
            raise found.error
        elif to_train and not found.has_state:
            unfit = unfit or WeightsError(without_state(f"ckpt_path='last' ({found.path})"))
        else:
            _info("--ckpt_path last: %s (epoch %s, step %s)", found.path, found.epoch, found.step)
            return Path(found.path)
    if unfit is not None:
        raise unfit  # better than to start anew unasked
    _info("--ckpt_path last: there is no checkpoint in %s", ", ".join(str(folder) for folder, _ in folders))
    return None


def without_state(file: str) -> str:
    """The message for a checkpoint of weights alone that training is to go on from."""
    return (
        f"{file} holds weights alone, no state of the optimizer; give a checkpoint that was saved with "
        "save_weights_only=False, or begin a new training with its backbone (--model.weights)"
    )


@dataclass(frozen=True, order=True)
class _Found:
    """What the head of a file says; ordered by the time of saving."""

    saved_at: float
    is_last: bool  # `save_last="link"` gives two names to one file
    path: str
    error: WeightsError | None = None
    has_state: bool = True
    epoch: Any = None
    step: Any = None


def _look_into(path: Path) -> _Found:
    content: Mapping[str, Any] = {}
    error = None
    try:
        content = read_checkpoint(path, map_location="meta")  # no tensor is read
    except WeightsError as reason:
        error = reason
    saved_at = content.get(SAVED_AT)
    return _Found(
        saved_at=saved_at if isinstance(saved_at, float) else path.stat().st_mtime,
        is_last=path.name.startswith("last"),
        path=str(path),
        error=error,
        has_state="optimizer_states" in content,
        epoch=content.get("epoch"),
        step=content.get("global_step"),
    )


def _folders(trainer: L.Trainer) -> Iterator[tuple[Path, str]]:
    """Folders of checkpoints, each with a pattern of the files in it."""
    root = Path(trainer.default_root_dir)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, OnExceptionCheckpoint):
            yield Path(callback.dirpath), f"{callback.filename}.ckpt"
        elif not isinstance(callback, ModelCheckpoint):
            continue
        elif callback.dirpath is not None:
            # A metric with "/" in the name of the file makes folders of it; others below may be those of other runs.
            depth = max(str(name).count("/") for name in (callback.filename, callback.CHECKPOINT_NAME_LAST))
            yield from ((Path(callback.dirpath), f"{'*/' * level}*.ckpt") for level in range(depth + 1))
        elif trainer.loggers:
            log = trainer.loggers[0]
            own = Path(log.save_dir or root) / str(log.name)
            # A version may have "/" in its name; without a name the folder of the logger is shared with others.
            version = "**" if log.name else "/".join("*" * (str(log.version).count("/") + 1))
            yield own, f"{version}/checkpoints/**/*.ckpt"
        else:
            yield root / "checkpoints", "**/*.ckpt"
    if not any(isinstance(callback, ModelCheckpoint) for callback in trainer.checkpoint_callbacks):
        yield root / "checkpoints", "**/*.ckpt"  # of `SaveOnSignal`
    yield root, "hpc_ckpt_*.ckpt"
