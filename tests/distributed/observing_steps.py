"""Callbacks that write down what a process computes on the way, to compare it among numbers of processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from rca_lightning import RCAModule


class Steps(L.Callback):
    """Losses of each batch, gradients of each optimiser step, prototypes of each epoch, and what is left in the end.

    Args:
        path: of the file for this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.losses: list[dict[str, float]] = []
        self.gradients: list[Tensor] = []
        self.prototypes: list[Tensor] = []
        self.valid: list[Tensor] = []
        self.regions: list[list[int]] = []

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        found = trainer.callback_metrics.items()
        self.losses.append({name: float(value) for name, value in found if name.startswith("train/")})
        self.regions.append(outputs["regions"].labels.tolist() if "regions" in outputs else [])

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.gradients.append(torch.cat([p.grad.flatten() for p in module.parameters() if p.requires_grad]))

    def on_train_epoch_end(self, trainer: L.Trainer, module: Any) -> None:
        if isinstance(module, RCAModule) and module.network.aggregation is not None:
            self.prototypes.append(module.network.aggregation.prototypes.clone())
            self.valid.append(module.network.aggregation.valid.clone())

    def on_fit_end(self, trainer: L.Trainer, module: Any) -> None:
        memory = getattr(module, "memory", None)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        scores = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        state = {
            "losses": self.losses,
            "gradients": torch.stack(self.gradients),
            "prototypes": self.prototypes,
            "valid": self.valid,
            "regions": self.regions,
            "memory": memory.state_dict() if memory is not None else {},
            "weights": module.state_dict(),
            "scores": scores,
        }
        torch.save(state, self.path)


class Predicted(L.Callback):
    """The images this process predicts, in order, and a number of each map.

    Args:
        path: of the file for this process.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.found: list[tuple[str, float]] = []

    def on_predict_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, *_: Any) -> None:
        self.found += [(result["image_id"], float(result["seeds"].maps.double().sum())) for result in outputs]

    def on_predict_end(self, trainer: L.Trainer, module: Any) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(self.found, self.path)
