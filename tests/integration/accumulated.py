"""Callbacks that look at what is accumulated."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch

from rca_lightning import AttentionAccumulation


class ReadAccumulated(L.Callback):
    """Saves the accumulated maps of every image that is predicted, in place of those of the network.

    Args:
        folder: for `<image id>.pt`.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        AttentionAccumulation.of(trainer)

    def on_predict_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, *numbers: int
    ) -> None:
        for result, size in zip(outputs, batch["original_size"].tolist(), strict=True):
            image_id = result["image_id"]
            seeds = AttentionAccumulation.of(trainer).seeds(image_id, result["seeds"].classes, size)
            torch.save(None if seeds is None else vars(seeds), self.folder / f"{image_id}.pt")


class Outputs(L.Callback):
    """Notes what the training steps hand to callbacks: whether any of it carries a graph."""

    def __init__(self) -> None:
        self.graphs: list[bool] = []

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.graphs.append(outputs["maps"].requires_grad or outputs["probabilities"].requires_grad)
        assert outputs["maps"].shape[:2] == outputs["probabilities"].shape == batch["tags"].shape
        assert bool(((outputs["probabilities"] > 0) & (outputs["probabilities"] < 1)).all())
