"""Where and with what a run was made."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

import rca_lightning

_CHECKOUT = Path(rca_lightning.__file__).parent


def surroundings(*, threads: int, on_cpu: bool) -> dict[str, Any]:
    """Date, hardware, versions, state of the code and how busy the machine is.

    Args:
        threads: of one process.
        on_cpu: whether the run leaves a GPU alone.
    """
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "hardware": {
            "cpu": _cpu_model(),
            "cores": cores(),
            "threads": threads,
            "gpu": None if on_cpu or not torch.cuda.is_available() else torch.cuda.get_device_name(),
        },
        "software": {
            "rca_lightning": rca_lightning.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        **_code(),
        "load": round(os.getloadavg()[0], 1),
    }


def cores() -> int:
    """Cores that this process may use, which in a job is less than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_model() -> str:
    information = Path("/proc/cpuinfo")
    for line in information.read_text().splitlines() if information.is_file() else ():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.processor() or platform.machine()


def _code() -> dict[str, Any]:
    """The commit of the library and whether files differ from it; None where there is no git or no repository."""
    commit = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain", "--untracked-files=no", "--", str(_CHECKOUT))
    return {"commit": commit, "dirty": None if commit is None or changes is None else bool(changes)}


def _git(*words: str) -> str | None:
    try:
        done = subprocess.run(["git", *words], cwd=_CHECKOUT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
