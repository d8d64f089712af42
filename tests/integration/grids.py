"""Grids for the ablation tool, what it writes, and what waits to be stopped in it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import lightning as L
import yaml


class PauseAfter(L.Callback):
    """Waits in the second epoch for the signal that ends the training, once.

    Args:
        mark: file that says that it is waiting, or has waited.
    """

    def __init__(self, mark: str) -> None:
        self.mark = Path(mark)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == 1 and not self.mark.exists():
            self.mark.touch()
            while not trainer.received_sigterm:
                time.sleep(0.02)


def result(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / "results" / f"{name}.json").read_text())


def write_grid(folder: Path, **content: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    return path


def without_dirpath(config: Path, *callbacks: dict[str, Any]) -> str:
    content = yaml.safe_load(config.read_text())
    keeper = {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    content["trainer"]["callbacks"] = [*callbacks, keeper]
    config.write_text(yaml.safe_dump(content))
    return str(config)
