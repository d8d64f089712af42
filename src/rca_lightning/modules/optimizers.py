"""Optimizer and learning-rate schedule for fine-tuning a backbone with new layers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError

OptimizerName = Literal["sgd", "adamw"]


@check_arguments
def build_optimizer(
    backbone: Iterable[nn.Parameter],
    new_layers: Iterable[nn.Parameter],
    *,
    name: OptimizerName,
    lr: float,
    new_layer_lr_ratio: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """Builds the optimizer, with the rate of new layers scaled by `new_layer_lr_ratio`; skips frozen parameters."""
    if lr <= 0:
        raise ArgumentError("lr", lr, "give a number above 0")
    groups = [
        {"params": [p for p in backbone if p.requires_grad], "lr": lr},
        {"params": [p for p in new_layers if p.requires_grad], "lr": lr * new_layer_lr_ratio},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)


def poly_decay(optimizer: Optimizer, total_steps: int, power: float) -> LambdaLR:
    """Rate times `(1 - step / total_steps) ** power` (Liu et al., ParseNet; DeepLab), a step at a time."""
    if total_steps < 1:
        raise ArgumentError("total_steps", total_steps, "give at least one training step")
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total_steps) ** power)


def optimizer_and_schedule(module: L.LightningModule, backbone: nn.Module) -> OptimizerLRSchedulerConfig:
    """Builds optimizer and schedule from the `hparams` of a module; weights outside its backbone are new layers."""
    tuned = list(backbone.parameters())
    known = set(tuned)
    optimizer = build_optimizer(
        tuned,
        [weight for weight in module.parameters() if weight not in known],
        name=module.hparams["optimizer"],
        lr=module.hparams["lr"],
        new_layer_lr_ratio=module.hparams["new_layer_lr_ratio"],
        weight_decay=module.hparams["weight_decay"],
        momentum=module.hparams["momentum"],
    )
    steps = module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        remedy = "give it or max_steps: the learning rate decays over all steps, so their number must be known"
        raise ArgumentError("trainer.max_epochs", module.trainer.max_epochs, remedy)
    schedule = poly_decay(optimizer, int(steps), module.hparams["poly_power"])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
