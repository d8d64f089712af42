"""A trainer for tests: on the CPU, in a folder of the test, with nothing on the screen and nothing saved unasked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L


def quiet_trainer(folder: Path, **options: Any) -> L.Trainer:
    """`options` are those of `Trainer` and come before the quiet ones."""
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return L.Trainer(**(quiet | options))
