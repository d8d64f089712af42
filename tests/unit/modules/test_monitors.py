"""Callbacks that monitor what nothing logs are refused before the first epoch, with the names there are."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import BatchSizeFinder, EarlyStopping, LearningRateFinder, ModelCheckpoint
from lightning.pytorch.tuner import Tuner
from tests.quiet_trainer import quiet_trainer

from rca_lightning import RCAModule, RegionMemoryCallback, SegmentationModule, WSSSDataModule
from rca_lightning.data.synthetic.dataset import CLASS_NAMES, generate
from rca_lightning.errors import ArgumentError


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("synthetic")
    root = generate(folder, seed=3, train_images=24, val_images=4, image_size=64)
    (root / "classes.txt").write_text("\n".join(CLASS_NAMES))
    return root


def data(root: Path, *, masks: bool = True) -> WSSSDataModule:
    L.seed_everything(0, verbose=False)
    lists = {split: str(root / "ImageSets" / "Segmentation" / f"{split}.txt") for split in ("train", "val")}
    return WSSSDataModule(
        "folder",
        root,
        image_dir="JPEGImages",
        mask_dir="SegmentationClass" if masks else None,
        tags_file="image_labels.txt",
        split_files=lists,
        batch_size=8,
        crop_size=32,
        num_workers=0,
    )


def rca(**options: Any) -> RCAModule:
    common = {"backbone": "resnet14", "frozen_batchnorm": False, "num_prototypes": 2, "background_prototypes": 2}
    options = common | {"warmup_epochs": 1, "confidence": 0.0, "flip": False} | options
    return RCAModule(len(CLASS_NAMES), list(CLASS_NAMES), **options)


def segmenter(**options: Any) -> SegmentationModule:
    options = {"backbone": "resnet14", "frozen_batchnorm": False, "flip": False} | options
    return SegmentationModule(len(CLASS_NAMES), list(CLASS_NAMES), **options)


def trained(folder: Path, module: L.LightningModule, images: WSSSDataModule, *more: L.Callback, **options: Any):
    memory = [RegionMemoryCallback(slots=6, backend="torch")] if isinstance(module, RCAModule) else []
    saves = any(isinstance(one, ModelCheckpoint) for one in more)
    path = options.pop("ckpt_path", None)
    options = {"max_epochs": 1, "callbacks": [*memory, *more], "enable_checkpointing": saves, **options}
    trainer = quiet_trainer(folder, **options)
    trainer.fit(module, datamodule=images, ckpt_path=path)
    return trainer


@pytest.mark.parametrize("limit", [0, 2])
@pytest.mark.parametrize(
    "module",
    [
        rca,
        lambda: rca(contrast=False, aggregation=False, on_non_finite="skip"),
        lambda: rca(beta=0.0, eval_tags="predicted"),
        segmenter,
        lambda: segmenter(tag_weight=1.0, on_non_finite="skip"),
    ],
)
def test_names_are_those_that_are_logged(tmp_path: Path, root: Path, module, limit: int):
    module = module()
    names: list[str] = []

    class Notes(L.Callback):
        def on_fit_start(self, trainer, pl_module):
            names.extend(pl_module.logged_names())

    trainer = trained(tmp_path, module, data(root), Notes(), limit_val_batches=limit)
    found = [name for name in trainer.callback_metrics if not name.startswith(RegionMemoryCallback.logged_prefixes)]
    assert sorted(found) == sorted(names)


@pytest.mark.parametrize("callback", [EarlyStopping, ModelCheckpoint])
@pytest.mark.parametrize(
    ("module", "monitor", "options", "message"),
    [
        (segmenter, "val/mIoU", {}, r"nothing in this run logs it; give one of train/loss, val/miou$"),
        (
            segmenter,
            "val/miou",
            {"limit_val_batches": 0},
            r"it \(nothing is validated: limit_val_batches=0",
        ),
        (rca, "val/miou", {}, r"give one of train/loss, train/loss_coarse, .*, val/miou_true_tags, "),
    ],
)
def test_unknown_names_are_refused_at_the_start(
    tmp_path: Path, root: Path, callback, module, monitor, options, message
):
    with pytest.raises(ArgumentError, match=rf"^{callback.__name__}\.monitor='{monitor}': .*{message}"):
        trained(tmp_path, module(), data(root), callback(monitor=monitor), **options)


def test_without_masks_there_is_no_score(tmp_path: Path, root: Path):
    images = data(root, masks=False)
    with pytest.raises(ArgumentError, match=r"true_tags': nothing in this run logs it \(nothing is validated"):
        trained(tmp_path, rca(), images, EarlyStopping("val/miou_true_tags"), limit_val_batches=1)


def test_known_names_pass_and_so_does_what_others_may_log(tmp_path: Path, root: Path):
    class Logs(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.log("mine", 1.0)

    steps = ModelCheckpoint(tmp_path, monitor="step")
    for callbacks in (
        [EarlyStopping("train/loss")],
        [EarlyStopping("prototypes/mean_cosine", strict=False), steps],
        [EarlyStopping("mine"), Logs()],
    ):
        assert trained(tmp_path, rca(), data(root), *callbacks, limit_val_batches=0).global_step == 3


@pytest.mark.parametrize("limit", [0, 1])
def test_rate_that_is_found_is_the_one_of_every_step(tmp_path: Path, root: Path, limit: int):
    module = rca(lr=0.02)
    finder = LearningRateFinder(num_training_steps=24)
    trainer = trained(tmp_path, module, data(root), finder, limit_val_batches=limit, max_epochs=8)
    found = finder.optimal_lr.suggestion()
    assert module.hparams["lr"] == found != 0.02
    (schedule,) = (config.scheduler for config in trainer.lr_scheduler_configs)
    assert schedule.base_lrs == [group["initial_lr"] for group in trainer.optimizers[0].param_groups]
    assert schedule.base_lrs == pytest.approx([found, 10 * found])
    assert trainer.global_step == 24


@pytest.mark.parametrize("limit", [0, 1])
def test_schedule_ends_with_the_steps_of_the_batch_size_that_is_found(tmp_path: Path, root: Path, limit: int):
    images = data(root)
    finder = BatchSizeFinder(max_trials=2, steps_per_trial=1, init_val=2)
    trainer = trained(tmp_path, rca(), images, finder, limit_val_batches=limit)
    assert images.batch_size == finder.optimal_batch_size == 4
    assert trainer.global_step == 6
    (schedule,) = (config.scheduler for config in trainer.lr_scheduler_configs)
    assert schedule.lr_lambdas[0](5) == pytest.approx(math.pow(1 / 6, 0.9))


def test_tuner_and_no_search_within_a_resumed_training(tmp_path: Path, root: Path):
    module, images = segmenter(), data(root)
    trainer = quiet_trainer(tmp_path, max_epochs=8, limit_val_batches=0)
    assert Tuner(trainer).scale_batch_size(module, datamodule=images, max_trials=2, steps_per_trial=1, init_val=4) == 8
    found = Tuner(trainer).lr_find(module, datamodule=images, num_training=24)
    assert module.hparams["lr"] == found.suggestion() is not None
    trained(tmp_path, module, images).save_checkpoint(tmp_path / "a.ckpt")
    for finder in (LearningRateFinder(), BatchSizeFinder()):
        with pytest.raises(ArgumentError, match=r"^callbacks='\w+Finder': it cannot search in a training that goes on"):
            trained(tmp_path, module, images, finder, max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
