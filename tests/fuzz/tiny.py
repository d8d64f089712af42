"""A module that takes checkpoints as the real ones do, and is made in no time."""

from __future__ import annotations

import torch

from rca_lightning.errors import ArgumentError
from rca_lightning.modules.checked_loading import CheckedLoading


class Tiny(CheckedLoading):
    task = "localize"

    def __init__(self, num_classes: int, class_names: list[str] | None = None, scales=(1.0,), lr: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters()
        if not 1 <= num_classes <= 1_000_000:
            raise ArgumentError("num_classes", num_classes, "give another number")
        self.network = torch.nn.Sequential(torch.nn.Linear(4, num_classes), torch.nn.BatchNorm1d(num_classes))
