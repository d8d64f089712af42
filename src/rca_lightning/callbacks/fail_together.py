"""The callback that lets no process of a run wait for one that has failed."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import threading
import time
from datetime import timedelta

import lightning as L
import torch.distributed as dist

from rca_lightning.distributed import is_distributed, world_size_and_rank
from rca_lightning.errors import ArgumentError

logger = logging.getLogger(__name__)

_CONNECTING = timedelta(seconds=10)


class Noticeboard:
    """Holds the first notice that any process posts.

    It lives in the store by which the processes found each other, at `MASTER_ADDR` and `MASTER_PORT`, over a connection
    of its own: that of the process group is taken while a process waits in it.

    Args:
        name: the same on all processes, another one for every board of a run.

    Raises:
        OSError: if the store cannot be reached.
    """

    def __init__(self, name: str) -> None:
        try:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=_CONNECTING)  # type: ignore[attr-defined]
        except (KeyError, ValueError, RuntimeError) as error:
            raise ConnectionError(f"no store at MASTER_ADDR and MASTER_PORT: {error}") from error
        self._confirmed = False
        # torchrun keeps its store when it starts the processes anew.
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self._store = dist.PrefixStore(f"rca_lightning/{attempt}/{name}", store)  # type: ignore[attr-defined]

    def post(self, notice: str) -> None:
        """Leave a notice, unless there is one.

        Raises:
            OSError: if the store has gone.
        """
        with _Gone():
            self._store.compare_set("notice", "", notice)

    def read(self) -> str | None:
        """The notice, or `None`; does not wait for one.

        Raises:
            OSError: if the store has gone.
        """
        with _Gone():
            return self._store.get("notice").decode() if self._store.check(["notice"]) else None

    def confirm(self) -> None:
        """Say, once, that this process has read it.

        Raises:
            OSError: if the store has gone.
        """
        if self._confirmed:
            return
        self._confirmed = True
        with _Gone():
            self._store.add("readers", 1)

    def wait_for_readers(self, count: int, *, seconds: float) -> None:
        """Wait until so many processes have read it, or the time is over.

        Raises:
            OSError: if the store has gone.
        """
        end = time.monotonic() + seconds
        with _Gone():
            while self._store.add("readers", 0) < count and time.monotonic() < end:
                time.sleep(0.1)


class _Gone:
    """The errors of a store, which are of several types, as one."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, _: object) -> None:
        if isinstance(error, RuntimeError):
            raise ConnectionError(f"the store has gone: {error}") from error


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
        processes, rank = world_size_and_rank()
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
