"""The callback that lets no process of a run wait for one that has failed."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading

import lightning as L

from rca_lightning.distributed import is_distributed, place
from rca_lightning.errors import ArgumentError
from rca_lightning.noticeboard import Noticeboard

logger = logging.getLogger(__name__)
_LOOK_EVERY = 1.0  # seconds
_boards = itertools.count()  # every process opens one for every stage, so the numbers agree


class FailTogether(L.Callback):
    """Ends all processes of a distributed run soon after one of them has raised, with its error named on each.

    A process that waits for others in a collective does not notice that one of them has failed: with NCCL it waits
    until the timeout of the process group, 30 minutes by default, and keeps its GPU. Here the process that raises
    leaves a notice, and a thread of every other looks for one each second. What still waits `patience` seconds
    later is ended with status 1.

    A process that is killed leaves no notice. Then the launcher has to end the others: Lightning's own and `torchrun`
    do so, `srun` with `--kill-on-bad-exit=1`.

    The command line adds it wherever there is more than one process.

    Args:
        patience: seconds a process gets to end by itself, as those do whose collective has failed.

    Attributes:
        notice: what another process left, once this one has failed after it.

    Raises:
        ArgumentError: for a negative patience.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[FailTogether()], logger=False, accelerator="cpu")
    """

    def __init__(self, patience: float = 10.0) -> None:
        if patience < 0:
            raise ArgumentError("patience", patience, "give 0 seconds or more")
        self.patience = patience
        self.notice: str | None = None
        self._board: Noticeboard | None = None
        # Made later, for processes may get a copy of this callback to start with.
        self._over: threading.Event | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Begin to look."""
        self._close()
        self._board = _open()
        if self._board is not None:
            self._over = threading.Event()
            watch = threading.Thread(target=self._watch, args=(self._board, self._over), daemon=True)
            watch.start()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Look no more."""
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Tell the others, or find out who was first."""
        board = self._board or _open()  # none yet if the data could not be set up
        self._close()
        if board is None:
            return
        processes, rank = place()
        notice = f"process {rank} of {processes} raised {type(exception).__name__}: {exception}"
        try:
            board.post(notice)
            found = board.read()
            board.confirm()
            if found != notice:
                self.notice = found
                logger.error("%s; so this one ends too", found)
            elif rank == 0:  # with it goes the store, if no launcher keeps it
                board.wait_for_readers(processes, seconds=3 * _LOOK_EVERY)
        except OSError as error:
            logger.debug("the other processes could not be told: %s", error)

    def _close(self) -> None:
        if self._over is not None:
            self._over.set()
        self._over = self._board = None

    def _watch(self, board: Noticeboard, over: threading.Event) -> None:
        try:
            while (notice := board.read()) is None:
                if over.wait(_LOOK_EVERY):
                    return
            board.confirm()
        except OSError:
            return  # the process that keeps the store has ended, perhaps because it is done
        if over.wait(self.patience):
            return
        logger.error("%s; this one waited for it and is ended", notice)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)  # the main thread may never come back from where it waits


def _open() -> Noticeboard | None:
    if not is_distributed():
        return None
    try:
        return Noticeboard(f"fail_together/{next(_boards)}")
    except OSError as error:
        logger.warning("a process that fails may leave the others waiting: %s", error)
        return None
