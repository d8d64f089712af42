"""Short trainings that must come out the same on one process and on several."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from torch.utils.data import DataLoader

from rca_lightning import OneStageModule, RCAModule, RegionMemoryCallback, SegmentationModule, WSSSDataModule
from tests.distributed import equality_data as given
from tests.distributed.observing_steps import Predicted, Steps
from tests.quiet_trainer import quiet_trainer

TRAIN_IMAGES, VAL_IMAGES = 26, 7  # neither divides by 2 and 3


# A small network; small steps, for rounding grows with them.
_SMALL: dict[str, Any] = {
    "num_classes": given.CLASSES, "backbone": "resnet14", "output_stride": 8, "confidence": 0.0, "lr": 1e-3,
    "num_prototypes": 2, "background_prototypes": 2, "alpha": 0.5, "flip": False, "warmup_epochs": 1,
}  # fmt: skip


def rca(**options: Any) -> RCAModule:
    return RCAModule(**(_SMALL | options))


def uneven_regions() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    return rca(), given.loader(given.random_tags(24), [12, 12]), {}


def none_on_a_rank() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    # A projection gets its gradient from regions alone.
    return rca(embedding_dim=8, positives="hardest"), given.loader(given.tags_of_first_rank(24), [12, 12]), {}


def class_on_one_rank() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    module = rca(positives="prototypes", region_map="coarse")
    return module, given.loader(given.last_class_on_first_rank(24), [12, 12]), {}


def last_batch_smaller() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    return rca(), given.loader(given.random_tags(19), [12, 7]), {}


def accumulation() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    module = rca(embedding_dim=8)
    return module, given.loader(given.tags_of_first_rank(24), [6, 6, 6, 6]), {"accumulate_grad_batches": 2}


def segmentation() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    module = SegmentationModule(given.CLASSES, backbone="resnet14", head="linear", tag_weight=0.5, lr=1e-3)
    return module, given.loader(given.random_tags(19), [12, 7]), {}


def one_stage() -> tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]:
    labels = {"teacher_warmup": 1, "ramp_epochs": 0.5, "low": 0.3, "high": 0.8, "pamr_iterations": 2}
    module = OneStageModule(**_SMALL, **labels, head="linear", teacher_decay=0.5)
    return module, given.loader(given.random_tags(19), [12, 7]), {}


CASES: dict[str, Callable[[], tuple[L.LightningModule, DataLoader[Any], dict[str, Any]]]] = {
    case.__name__: case
    for case in (
        uneven_regions,
        none_on_a_rank,
        class_on_one_rank,
        last_batch_smaller,
        accumulation,
        segmentation,
        one_stage,
    )
}


def run(folder: Path, processes: int) -> None:
    """Run every case, and `photographs`, on this process of so many."""
    cluster = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    for name, case in CASES.items():
        L.seed_everything(1, verbose=False)
        module, batches, options = case()
        # 5 slots a class: a batch of many regions overwrites some.
        memory = RegionMemoryCallback(slots=5, backend="torch")
        kept = Steps(_kept(folder, name))
        fit = {
            "max_epochs": 2,
            "precision": "64-true",
            "limit_val_batches": 0,
            "use_distributed_sampler": False,
            "callbacks": [memory, kept],
        }
        quiet_trainer(folder, **cluster, **fit, **options).fit(module, batches)
    photographs(folder, cluster, processes)


def photographs(folder: Path, cluster: dict[str, Any], processes: int) -> None:
    """Training, score and prediction with the data module and its samplers."""
    L.seed_everything(1, verbose=False)
    data = WSSSDataModule(
        "synthetic", folder.parent / "photographs", synthetic_train_images=TRAIN_IMAGES,
        synthetic_val_images=VAL_IMAGES, synthetic_image_size=64, crop_size=64, batch_size=12 // processes,
        num_workers=0, train_masks=False,
    )  # fmt: skip
    module = rca(num_classes=data.num_classes, class_names=data.class_names)
    memory = RegionMemoryCallback(slots=5, backend="torch")
    watching = [Steps(_kept(folder, "photographs")), Predicted(_kept(folder, "predicted"))]
    options = {"max_epochs": 2, "num_sanity_val_steps": 0, "callbacks": [memory, *watching]}
    trainer = quiet_trainer(folder, **cluster, **options)
    trainer.fit(module, data)
    trainer.predict(module, data, return_predictions=False)


def _kept(folder: Path, name: str) -> Path:
    # Before Lightning joins the processes only the environment tells which this is.
    return folder / f"{name}-{os.environ.get('LOCAL_RANK', '0')}.pt"
