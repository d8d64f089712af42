"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import rca_lightning


def describe_machine() -> dict[str, Any]:
    """Processor, accelerator, versions, threads and date, as JSON values."""
    found: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "load": round(os.getloadavg()[0], 1) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "rca_lightning": rca_lightning.__version__,
        "command": " ".join(["python", *sys.argv]),
    }
    if torch.cuda.is_available():
        found.update(_accelerator())
    return found


def _accelerator() -> dict[str, Any]:
    about = torch.cuda.get_device_properties(torch.cuda.current_device())
    return {
        "accelerator": about.name,
        "accelerator_gib": round(about.total_memory / 2**30, 1),
        "accelerators": torch.cuda.device_count(),
        "compute_capability": f"{about.major}.{about.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, check=True, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return (found.stdout.splitlines() or [None])[0]


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
