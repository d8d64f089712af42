"""The tool is a folder of scripts, no installed package: put it where `run.py` itself has it."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "experiments" / "ablation"))
