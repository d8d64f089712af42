"""What accumulated maps cover of the objects in generated images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import torch
import torch.nn.functional as F
import yaml

from rca_lightning import AttentionAccumulation, RCAModule, SeedIoU, WSSSDataModule
from rca_lightning.cli.main import main


class LastEpoch(AttentionAccumulation):
    """Keeps its maps apart from those of all epochs."""


def score(callback: AttentionAccumulation, data: WSSSDataModule, threshold: float) -> SeedIoU:
    """Of the accumulated maps of all images of `data`, against their masks."""
    data.setup("validate")
    metric = SeedIoU(data.num_classes, fixed_threshold=threshold)
    for batch in data.val_dataloader():
        classes = torch.nonzero(batch["tags"][0])[:, 0]
        seeds = callback.seeds(batch["image_id"][0], classes, batch["original_size"][0].tolist())
        metric.update(seeds.maps, batch["mask"][0], seeds.classes)
    return metric


def training_data(config: Path, **changed: object) -> WSSSDataModule:
    return WSSSDataModule(**(yaml.safe_load(config.read_text())["data"] | {"eval_split": "train"} | changed))


def test_maps_that_are_right_in_every_crop_are_right_in_the_photograph(config: Path):
    """Scale, padding, crop and flip undone through the real loader, with true masks in place of a network."""
    data = training_data(config, scale=(0.6, 1.8), color_jitter=0.0)
    data.setup("fit")
    callback = AttentionAccumulation(cells=64, warmup_epochs=0)
    callback.setup(None, RCAModule(data.num_classes, backbone="resnet14", contrast=False, aggregation=False), "fit")
    loader = data.train_dataloader()
    for epoch in range(5):
        loader.sampler.set_epoch(epoch)
        for batch in loader:
            labels = torch.arange(1, data.num_classes + 1)[:, None, None]
            maps = F.avg_pool2d((batch["mask"][:, None] == labels).float(), 2)
            outputs = {"maps": maps, "probabilities": torch.ones(len(maps), data.num_classes)}
            trainer = SimpleNamespace(current_epoch=epoch, is_last_batch=False)
            callback.on_train_batch_end(trainer, None, outputs, batch, 0)
    scores = score(callback, data, 0.5).compute()
    assert scores.miou > 0.85, scores.miou


def test_maps_of_all_epochs_cover_more_than_those_of_the_last(config: Path, tmp_path: Path):
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"contrast": False, "aggregation": False, "backbone": "resnet14", "final_map": "coarse"}
    content["model"] |= {"optimizer": "adamw", "lr": 0.002, "output_stride": 8}
    here = f"{__name__}."
    content["trainer"]["callbacks"] += [
        {"class_path": "rca_lightning.AttentionAccumulation", "init_args": {"cells": 32}},
        {"class_path": f"{here}LastEpoch", "init_args": {"cells": 32, "warmup_epochs": 5}},
    ]
    path = tmp_path / "coverage.yaml"
    path.write_text(yaml.safe_dump(content))
    cli = main(["fit", "--config", str(path), "--trainer.max_epochs=6", "--trainer.limit_val_batches=0"])
    every, last = (
        next(callback for callback in cli.trainer.callbacks if type(callback) is kind)
        for kind in (AttentionAccumulation, LastEpoch)
    )
    data = training_data(config)
    covered, before = (score(callback, data, 0.2).compute() for callback in (every, last))
    assert covered.recall[1:].nanmean() > before.recall[1:].nanmean()
