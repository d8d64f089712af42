"""Callbacks that make ranks uneven and write down what each rank has in the end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from rca_lightning import AttentionAccumulation


class DropRegions(L.Callback):
    """Takes all regions from rank 1 in every second step, and one region in the others."""

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_rank == 1:
            regions = outputs["regions"]
            keep = torch.arange(len(regions)) > 0 if batch_idx % 2 else torch.zeros(len(regions), dtype=torch.bool)
            outputs["regions"] = regions.select(keep)


class Poison(L.Callback):
    """Puts infinity into an image of rank 1, in the last batch of an accumulation of two, and into one of rank 0."""

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        if (trainer.global_rank, trainer.current_epoch, batch_idx) in {(1, 0, 1), (0, 1, 0)}:
            batch["image"][0] = torch.inf


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
            "skipped": pl_module.skipped_batches,
        }
        torch.save(state, self.folder / f"rank-{trainer.global_rank}.pt")


class WriteAttention(L.Callback):
    """Saves the accumulated maps of this rank, and whatever it has put into them.

    Args:
        folder: for `attention-<r>.pt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.given: list[tuple[int, str, int, torch.Tensor]] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        store = next(callback.store for callback in trainer.callbacks if isinstance(callback, AttentionAccumulation))
        update = store.update

        def noted(image_id: str, size: Any, classes: list[int], maps: torch.Tensor) -> None:
            self.given.append((trainer.current_epoch, image_id, classes[0], maps[0].clone()))
            update(image_id, size, classes, maps)

        store.update = noted

    def on_fit_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        store = next(callback.store for callback in trainer.callbacks if isinstance(callback, AttentionAccumulation))
        state = {"store": store.state_dict(), "given": self.given}
        torch.save(state, self.folder / f"attention-{trainer.global_rank}.pt")
