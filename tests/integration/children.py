"""`rca` in processes that a server with the imports and the parser behind it forks; real processes, real signals.

Not forked from the test process: that may have threads, and handlers whose files are closed.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from rca_lightning.cli.main import main

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["tests.integration.server"])


def start(words: list[str], folder: Path, before: Callable[[], None] | None = None) -> BaseProcess:
    """Begin `rca <words>`; its output goes to `log.txt` of the folder, what it logged last to `metrics.pt`.

    Args:
        words: after `rca`.
        folder: made if missing.
        before: what the child does first, such as patching itself; is pickled.

    Returns:
        The process, under way.
    """
    folder.mkdir(parents=True, exist_ok=True)
    process = _CONTEXT.Process(target=_child, args=(words, folder, dict(os.environ), before))
    process.start()
    return process


def _child(words: list[str], folder: Path, environment: dict[str, str], before: Callable[[], None] | None) -> None:
    status = 1
    try:
        log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.environ.clear()
        os.environ.update(environment)
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell started in the background
        status = _run(words, folder, before)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(words: list[str], folder: Path, before: Callable[[], None] | None) -> int:
    try:
        if before is not None:
            before()
        cli = main(words)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    if cli is not None:
        torch.save({name: value.clone() for name, value in cli.trainer.callback_metrics.items()}, folder / "metrics.pt")
    return 0


def finish(process: BaseProcess, seconds: float = 120.0) -> int:
    """Wait for the end of a child; its exit status, or minus the number of the signal that killed it."""
    process.join(seconds)
    if process.exitcode is None:
        process.kill()
        process.join()
        raise AssertionError("the child did not end")
    return process.exitcode


def send(process: BaseProcess, number: signal.Signals) -> None:
    """A signal to a child."""
    assert process.pid is not None
    os.kill(process.pid, number)


def wait_for(condition: Callable[[], object], process: BaseProcess, seconds: float = 120.0) -> None:
    """Wait until something holds while a child runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert process.is_alive(), "the child ended first"
        time.sleep(0.001)
