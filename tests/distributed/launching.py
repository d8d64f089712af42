"""Processes started as a user starts them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

from rca_lightning.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
TWO_PROCESSES = ("--trainer.devices=2", "--trainer.strategy=ddp")
FORKED = ("--trainer.devices=2", "--trainer.strategy=ddp_fork")  # from this process, so without the imports


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(*words: object, **environment: str) -> subprocess.Popen[str]:
    """Begin `python words ...`, which finds this library and these tests; both outputs come as one."""
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    # Without what an earlier test in this process has left of its seed.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PL_")}
    given = {"OMP_NUM_THREADS": "1", "PYTHONPATH": path, "MASTER_PORT": str(free_port()), **environment}
    return subprocess.Popen(
        [sys.executable, *map(str, words)],
        env=kept | given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def output(process: subprocess.Popen[str], *, seconds: float = 240) -> str:
    """What it has written when it has ended; killed and a failure if that takes longer."""
    try:
        text, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    return text


def rca_started(command: str, path: Path, *more: object) -> None:
    """Run a command on two processes that Lightning starts: a forked process keeps its scores to itself."""
    process = start("-m", "rca_lightning", command, "--config", path, *TWO_PROCESSES, *more)
    text = output(process)
    assert process.returncode == 0, text[-6000:]


def rca(command: str, path: Path, *more: object) -> None:
    """Run a command on two processes to its end."""
    main([command, "--config", str(path), *FORKED, *map(str, more)])
