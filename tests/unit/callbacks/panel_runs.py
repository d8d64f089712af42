"""What the tests of panels run: a small module, samples of random pixels, a trainer with the callback."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.loggers import Logger, WandbLogger
from tests.quiet_trainer import quiet_trainer
from tests.tagged_images import tagged_images
from torch.utils.data import DataLoader

from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.data.sample import Sample, collate
from rca_lightning.modules.rca_module import RCAModule

SIZE = 32


def build(**options) -> RCAModule:
    torch.manual_seed(0)
    return RCAModule(
        num_classes=2, backbone="resnet14", flip=False, contrast=False, aggregation=False, final_map="coarse", **options
    )


def samples(count: int, *, masks: bool = True) -> list[Sample]:
    found = tagged_images(*map(str, range(count)), height=SIZE, width=SIZE)
    generator = torch.Generator().manual_seed(1)
    for sample in found if masks else ():
        sample["mask"] = torch.randint(0, 3, (SIZE, SIZE), generator=generator)
    return found


def loader(data: list[Sample], batch_size: int = 2) -> DataLoader:
    return DataLoader(data, batch_size=batch_size, collate_fn=collate)


def trainer(callback: PanelCallback | None, root: Path, **options: Any) -> L.Trainer:
    return quiet_trainer(root, callbacks=[] if callback is None else [callback], **options)


def names(root: Path) -> list[str]:
    folder = root / "panels"
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


class OtherRank:
    """A trainer as another rank than the first sees it."""

    sanity_checking = False
    loggers: ClassVar[list] = []
    asked = 0

    @property
    def log_dir(self) -> str:
        # In Lightning a broadcast: a rank that does not ask leaves the others waiting for ever.
        self.asked += 1
        return "unused"


class Recorder(WandbLogger):
    """Takes the place of Weights & Biases, which need not be installed."""

    def __init__(self) -> None:
        Logger.__init__(self)
        self.images: list[tuple[str, tuple[int, ...], int]] = []
        self.tables: dict[str, list[list]] = {}

    name = version = save_dir = experiment = None

    def log_hyperparams(self, *args, **options) -> None: ...
    def log_metrics(self, *args, **options) -> None: ...
    def after_save_checkpoint(self, *args) -> None: ...
    def finalize(self, status: str) -> None: ...
    def log_image(self, key, images, step=None, **options) -> None:
        self.images.append((key, images[0].shape, step))

    def log_table(self, key, columns=None, data=None, **options) -> None:
        self.tables[key] = [columns, *data]
