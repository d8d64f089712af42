"""Saves a checkpoint on SIGUSR1 or SIGTERM, between two steps, and exits."""

from __future__ import annotations

import logging
import os
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only

logger = logging.getLogger(__name__)
_info = rank_zero_only(logger.info)

EXIT_CODE = 75  # "temporary failure, try again" of sysexits.h
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGUSR1", "SIGTERM") if hasattr(signal, name))


class SaveOnSignal(L.Callback):
    """On SIGUSR1 or SIGTERM writes a checkpoint at the next safe point and exits with status 75.

    A safe point is the end of a training batch after which no gradients are accumulated, and the start of an epoch;
    a signal during the last batch of an epoch or validation waits for the next epoch. The checkpoint is `last.ckpt` in
    the folder of the first `ModelCheckpoint`, or `checkpoints` in `default_root_dir`, so `--ckpt_path last` finds it,
    and a run resumed from it ends as if it had not been interrupted. One signal to any process of a distributed run is
    enough: they agree at every safe point.

    Under SLURM with Lightning's requeueing, SIGUSR1 makes Lightning write its own checkpoint and requeue the job, as
    without this class, but at a safe point and not wherever the step happens to be; SIGTERM is left to Lightning.

    The command line adds it to every `rca fit` that writes checkpoints. It takes the last place among the callbacks.

    Attributes:
        received: the pending signal, else `None`.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[SaveOnSignal()], logger=False, accelerator="cpu")
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._watching = False
        self._before: dict[int, Any] = {}  # handlers from before this one
        self._requeue: Any = None  # Lightning's handler under SLURM

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Move to the last place, after the state of other callbacks is up to date, and set the handlers."""
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        trainer.callbacks = [callback for callback in callbacks if callback is not self] + [self]  # type: ignore[attr-defined]
        _restore_handlers()
        # Under SLURM Lightning does not register its handler where there is one.
        if stage == "fit" and not SLURMEnvironment.detect():
            self._watch(_SIGNALS)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Set the handlers again: Lightning has registered its own."""
        if SLURMEnvironment.detect():
            self._requeue = signal.getsignal(_SIGNALS[0])
            self._watch(_SIGNALS[:1])
        else:
            self._watch(_SIGNALS)

    def _watch(self, signals: tuple[int, ...]) -> None:
        if threading.current_thread() is not threading.main_thread():
            return  # Python lets no other thread do it
        self._watching = True
        for number in signals:
            before = signal.signal(number, self._note)
            self._before.setdefault(number, before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._watching:
            self.received = number
            return
        # Lightning puts back the handlers it found, this one among them, when training has failed.
        signal.signal(number, self._before.get(number) or signal.SIG_DFL)
        os.kill(os.getpid(), number)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Act, unless gradients are being accumulated or other callbacks still have to end the epoch."""
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._act(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Act on what came during the last batch or validation."""
        self._act(trainer)

    def _act(self, trainer: L.Trainer) -> None:
        if not trainer.strategy.reduce_boolean_decision(self.received is not None, all=False):
            return
        number, self.received = self.received or _SIGNALS[0], None
        if callable(self._requeue):
            self._requeue(number, None)
            return
        path = _last_path(trainer)
        trainer.save_checkpoint(path)
        _info(f"{signal.Signals(number).name}: saved {path}; go on with --ckpt_path last")
        raise SystemExit(EXIT_CODE)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the handlers."""
        self._stop()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Restore the handlers."""
        self._stop()

    def _stop(self) -> None:
        if self._watching:
            for number, before in self._before.items():
                signal.signal(number, before or signal.SIG_DFL)
        self._watching = False
        self._requeue = None


def _restore_handlers() -> None:
    """Removes handlers of ended runs, which Lightning restores: it sets none of its own where it finds another's."""
    for number in _SIGNALS if threading.current_thread() is threading.main_thread() else ():
        while isinstance(owner := getattr(signal.getsignal(number), "__self__", None), SaveOnSignal):
            if owner._watching:
                break
            signal.signal(number, owner._before.get(number) or signal.SIG_DFL)


def _last_path(trainer: L.Trainer) -> Path:
    """Path of `last.ckpt`, which the checkpoint callback then replaces."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.dirpath is not None:
            path = Path(callback.last_model_path or _unused(Path(callback.dirpath)))
            callback.last_model_path = str(path)  # part of the checkpoint, else it would write beside it
            return path
    return Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"


def _unused(folder: Path) -> Path:
    names = ["last.ckpt", *(f"last-v{number}.ckpt" for number in range(1, 1000))]
    return next(folder / name for name in names if not (folder / name).exists())
