"""Callbacks for runs of which one process fails."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import lightning as L


class RecordException(L.Callback):
    """Writes down when a process has raised, and what.

    Args:
        folder: for `raised-<rank>.txt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        path = self.folder / f"raised-{trainer.global_rank}.txt"
        path.write_text(f"{time.time()} {type(exception).__name__}: {exception}")


class WaitForever(L.Callback):
    """Waits without end from the second batch on, as a process does in a collective of NCCL.

    Args:
        rank: of the process that waits.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and batch_idx == 1:
            while True:  # a signal whose handler returns does not end it
                threading.Event().wait()
