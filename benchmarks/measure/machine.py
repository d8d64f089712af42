"""What the numbers were measured on."""

from __future__ import annotations

import datetime
import os
import platform
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
        found["accelerator"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
