"""Fits behind a frozen backbone on a few generated images, for tests."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import torch

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.synthetic.dataset import generate
from rca_lightning.modules.rca_module import RCAModule
from tests.quiet_trainer import quiet_trainer

TRAIN, VAL, SIZE = 12, 5, 64


def generated(folder: Path) -> Path:
    """Generates the images in a folder; returns that of the data set."""
    return generate(folder, seed=1, train_images=TRAIN, val_images=VAL, image_size=SIZE)


def data(root: Path, **options) -> WSSSDataModule:
    options = {"batch_size": 4, "num_workers": 0, **options}
    return WSSSDataModule(
        "synthetic", root.parent, synthetic_seed=1, synthetic_train_images=TRAIN, synthetic_val_images=VAL,
        synthetic_image_size=SIZE, **options,
    )  # fmt: skip


def frozen(**options) -> RCAModule:
    torch.manual_seed(0)
    options = {"num_prototypes": 2, "background_prototypes": 3, "output_stride": 8, "embedding_dim": 16, **options}
    return RCAModule(num_classes=6, backbone="resnet14", weights="none", backbone_mode="frozen", **options)


class Counted(L.Callback):
    """How many images the backbone has seen."""

    def __init__(self) -> None:
        self.images = 0

    def on_fit_start(self, trainer, pl_module):
        pl_module.network.backbone.register_forward_pre_hook(self._count)

    def _count(self, _, inputs):
        self.images += len(inputs[0])


def fit(
    root: Path, folder: Path, module: RCAModule, *, epochs: int = 2, ckpt_path=None, callbacks=(), splits=(),
    dataset=None, **trainer,
):  # fmt: skip
    counted, cache = Counted(), FeatureCacheCallback(str(folder / "features"), splits=splits)
    parts = [counted, cache, RegionMemoryCallback(backend="torch"), *callbacks]
    made = quiet_trainer(folder, max_epochs=epochs, callbacks=parts, **trainer)
    made.fit(module, datamodule=dataset or data(root), ckpt_path=ckpt_path)
    return counted.images, made
