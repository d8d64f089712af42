"""A small module that trains a convolution on crops of a cached feature pyramid, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.backbones.build import build_backbone
from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.data.sample import Batch
from rca_lightning.modules.frozen_backbone import FrozenBackboneMixin
from rca_lightning.rca.projection import project
from rca_lightning.segmentation.pyramid import FeaturePyramid
from tests.frozen_fits import Counted
from tests.quiet_trainer import quiet_trainer

CHANNELS = (4, 6, 8)


class PyramidModule(FrozenBackboneMixin):
    """A 1x1 convolution on all levels, on the grid of the finest, behind the mean of each channel."""

    network: FeaturePyramid
    trains_on_crops = True

    def __init__(self, num_classes: int = 6, scales: tuple[float, ...] = (1.0,)) -> None:
        super().__init__()
        self.save_hyperparameters(
            {
                "backbone": "resnet14",
                "backbone_mode": "frozen",
                "output_stride": 16,
                "scales": scales,
                "flip": True,
                "max_side": 1280,
            }
        )
        self.network = FeaturePyramid(build_backbone("resnet14", weights="none", output_stride=16), CHANNELS)
        self.register_buffer("mean", torch.zeros(sum(CHANNELS)))
        self.head = nn.Conv2d(sum(CHANNELS), num_classes + 1, 1)
        self.starts, self.seen, self.scored, self.losses = 0, [], [], []

    def start_from_features(self, images: CachedFeatures, *, penalty: float) -> None:
        self.starts += 1
        means = []
        for row in range(len(images)):
            (levels,) = images[row]["features"]
            means.append(torch.cat([level.float().mean((0, 2, 3)) for level in levels]))
        self.mean.copy_(torch.stack(means).mean(0))

    def logits(self, levels: list[Tensor]) -> Tensor:
        size = levels[0].shape[2:]
        joined = torch.cat([F.interpolate(level.float(), size, mode="nearest") for level in levels], dim=1)
        return self.head(joined - self.mean[:, None, None])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        logits = F.interpolate(self.logits(batch["features"]), scale_factor=2.0, mode="bilinear")
        self.seen.append((self.current_epoch, batch["image_id"]))
        loss = F.cross_entropy(logits, batch["mask"], ignore_index=255)
        self.losses.append(loss.item())
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        for image, of_scales in zip(batch["image"], batch["features"], strict=True):
            computed = project(self.network.projections, self.network.features(image[None]))
            self.scored.append([tuple(level.shape) for levels in of_scales for level in levels])
            for cached, level in zip(of_scales[0], computed, strict=True):
                # bfloat16 there, float32 here: single values near 0 say nothing.
                error = float((cached[:1].float() - level).norm() / level.norm())
                assert error < 0.03

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.head.parameters(), lr=0.02)


def fit_pyramid(
    data: WSSSDataModule, folder: Path, *, epochs: int = 2, scales: tuple[float, ...] = (1.0,), ckpt_path: Any = None,
    callbacks: tuple[L.Callback, ...] = (), features: Path | None = None, **trainer: Any,
) -> tuple[PyramidModule, int, L.Trainer]:  # fmt: skip
    """Fits the module; returns it, how many photographs its backbone has seen before training, and the trainer."""
    module, counted = PyramidModule(scales=scales), Counted()
    parts = [counted, FeatureCacheCallback(str(features or folder / "features")), Frozen(counted), *callbacks]
    made = quiet_trainer(folder, max_epochs=epochs, num_sanity_val_steps=0, callbacks=parts, **trainer)
    made.fit(module, data, ckpt_path=ckpt_path)
    return module, parts[2].images, made


class Frozen(L.Callback):
    """Notes what was counted before training."""

    def __init__(self, counted: Counted) -> None:
        self.counted, self.images = counted, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.images = self.counted.images
