"""Callbacks for runs of which one process fails, and processes started as `srun` starts them."""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

import lightning as L


class NoteWhen(L.Callback):
    """Writes down when a process has raised, and what.

    Args:
        folder: for `raised-<rank>.txt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
        path = self.folder / f"raised-{trainer.global_rank}.txt"
        path.write_text(f"{time.time()} {type(exception).__name__}")


class Deaf(L.Callback):
    """Waits without end from the second batch on, as a process does for a collective of NCCL.

    Args:
        rank: of the process that waits.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == self.rank and batch_idx == 1:
            threading.Event().wait()


def _as_tasks(count: int) -> None:
    """Run the command line in `count` tasks as Slurm numbers them; none is ended because another has failed."""
    from rca_lightning.cli.main import console

    tasks = []
    for task in range(count):
        child = os.fork()
        if child == 0:
            numbers = {"NTASKS": count, "NTASKS_PER_NODE": count, "PROCID": task, "LOCALID": task, "NODEID": 0}
            names = {"JOB_ID": 1234, "JOB_NAME": "rca", "NODELIST": "127.0.0.1"}
            os.environ.update({f"SLURM_{name}": str(value) for name, value in (numbers | names).items()})
            console()
            sys.exit()
        tasks.append(child)
    statuses = [os.waitstatus_to_exitcode(os.waitpid(task, 0)[1]) for task in tasks]
    print(f"statuses {statuses}")


if __name__ == "__main__":
    _as_tasks(2)
