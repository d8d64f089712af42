"""A piece of a test in a forked process, which may spoil itself: limits, signals, its own folder."""

from __future__ import annotations

import json
import os
import resource
import traceback
from collections.abc import Callable
from typing import Any


def in_fork(work: Callable[[], Any]) -> Any:
    """What `work` returns, a JSON value; an error of it is its class and its words, as a list."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        silent = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silent, 1)  # what the test runner captures goes into files, which the limits would meet too
        os.dup2(silent, 2)
        try:
            result = work()
        except Exception as error:
            result = [type(error).__name__, str(error) or traceback.format_exc()]
        with os.fdopen(writer, "w") as pipe:
            json.dump(result, pipe)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return json.loads(text)


def limit_files(size: int) -> None:
    """Let no file of this process grow beyond so many bytes: writing fails halfway, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
