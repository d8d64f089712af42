"""Callbacks that make ranks uneven and write down what each rank has in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch


class DropRegions(L.Callback):
    """Takes all regions from rank 1 in every second step, and one region in the others."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1:
            regions = outputs["regions"]
            keep = torch.arange(len(regions)) > 0 if batch_idx % 2 else torch.zeros(len(regions), dtype=torch.bool)
            outputs["regions"] = regions.select(keep)


class WriteDown(L.Callback):
    """Saves memory, prototypes and weights of this rank.

    Args:
        folder: for `rank-<r>.pt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.received: list[int] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.received.append(len(outputs["regions"]))

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        state = {
            "memory": pl_module.memory.state_dict(),
            "module": pl_module.state_dict(),
            "received": self.received,
        }
        torch.save(state, self.folder / f"rank-{trainer.global_rank}.pt")
