"""A notice that one process of a run leaves for all others, which they can read while they wait for it elsewhere."""

from __future__ import annotations

import os
import time
from datetime import timedelta

import torch.distributed as dist

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
