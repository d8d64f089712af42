"""`rca` in child processes forked from this one, which has the imports behind it; real processes, real signals."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import torch

from rca_lightning.cli import main


def start(words: list[str], folder: Path, before: Callable[[], None] | None = None) -> int:
    """Begin `rca <words>`; its output goes to `log.txt` of the folder, what it logged last to `metrics.pt`.

    Args:
        words: after `rca`.
        folder: made if missing.
        before: what the child does first, such as patching itself.

    Returns:
        Its process id.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        os._exit(_child(words, folder, before))
    return pid


def _child(words: list[str], folder: Path, before: Callable[[], None] | None) -> int:
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Handlers that are there already write into files of the parent.
    sys.stdout = sys.stderr = os.fdopen(log, "w", buffering=1)
    for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
        for handler in getattr(logger, "handlers", ()):
            if type(handler) is logging.StreamHandler:
                handler.setStream(sys.stderr)
    logging.disable(logging.NOTSET)
    try:
        if before is not None:
            before()
        cli = main(words)
        torch.save({name: value.clone() for name, value in cli.trainer.callback_metrics.items()}, folder / "metrics.pt")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def finish(pid: int, seconds: float = 120.0) -> int:
    """Wait for the end of a child; its exit status, or minus the number of the signal that killed it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found, status = os.waitpid(pid, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    raise AssertionError("the child did not end")


def wait_for(condition: Callable[[], object], pid: int, seconds: float = 120.0) -> None:
    """Wait until something holds while a child runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        assert os.waitpid(pid, os.WNOHANG) == (0, 0), "the child ended first"
        time.sleep(0.001)
