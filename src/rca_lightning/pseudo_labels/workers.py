"""Bounded queue of calls in worker processes or threads, so that the network need not wait for them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from typing import Any

import torch

from rca_lightning.errors import ArgumentError, RCAError


class WorkQueue:
    """Calls functions in `workers` processes or threads; with `workers=0` at once in this one.

    At most two calls per worker run or wait, which bounds the memory: beyond that `submit` waits for the oldest one.
    Workers end with `join` or `close`, or when this process ends, even if it is killed.

    Args:
        workers: processes or threads, 0 or more. They start with the first call.
        threads: whether to use threads, for work outside of Python such as compression: they start at once and
            arguments are not copied.
        name: name of the caller's argument, for errors.
    """

    def __init__(self, workers: int, *, threads: bool = False, name: str = "workers") -> None:
        if workers < 0:
            raise ArgumentError(name, workers, "give 0 (work in the main process) or more")
        self.workers = workers
        self.threads = threads
        self._name = name
        self._pool: Executor | None = None
        self._waiting: deque[Future[Any]] = deque()

    def submit(self, function: Callable[..., object], *arguments: object) -> None:
        """Calls `function(*arguments)`; both must be picklable if there are processes.

        Raises:
            Exception: the error of an earlier call, as soon as it is known.
            RCAError: if a worker process was killed.
        """
        if self.workers == 0:
            function(*arguments)
            return
        if self._pool is None:
            self._pool = self._open()
        while self._waiting and (self._waiting[0].done() or len(self._waiting) >= 2 * self.workers):
            self._wait_for_oldest()
        with self._killed_workers():
            self._waiting.append(self._pool.submit(function, *arguments))

    def join(self) -> None:
        """Waits for all calls and ends the workers.

        Raises:
            Exception: the first error of a call.
            RCAError: if a worker process was killed.
        """
        try:
            while self._waiting:
                self._wait_for_oldest()
        finally:
            self.close()

    def close(self) -> None:
        """Ends the workers after the calls that they have begun; the other calls are dropped."""
        self._waiting.clear()
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def _open(self) -> Executor:
        if self.threads:
            return ThreadPoolExecutor(self.workers, thread_name_prefix="rca")
        # A forked process would share the GPU and the threads of this one.
        context = multiprocessing.get_context("spawn")
        return ProcessPoolExecutor(self.workers, mp_context=context, initializer=_start)

    def _wait_for_oldest(self) -> None:
        with self._killed_workers():
            self._waiting.popleft().result()

    @contextmanager
    def _killed_workers(self) -> Iterator[None]:
        try:
            yield
        except BrokenProcessPool as error:
            raise RCAError(
                f"{self._name}={self.workers}: a worker process was killed, perhaps for want of memory, or could not "
                "start, as in a script without `if __name__ == '__main__':`; give fewer, or 0 to work in the main "
                "process"
            ) from error


def _start() -> None:
    torch.set_num_threads(1)  # the workers share the cores already
    # Ctrl-C goes to all processes of a terminal; the main one lets its workers finish what they write.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    # Otherwise the workers of a killed process would wait for calls for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
