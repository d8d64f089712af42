"""What loggers get to know of a score: whose tags, whether masks chose its threshold, and all that it rests on."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tests.unit.callbacks.panel_runs import Recorder, build, loader, samples, trainer
from tests.unit.modules.test_logger_tables import texts

from rca_lightning import SegmentationModule
from rca_lightning.evaluation.comparison import protocol_name
from rca_lightning.evaluation.image_counts import ids_digest


class Configured(Recorder):
    """Weights & Biases with a configuration, which says how often it was written to."""

    def __init__(self) -> None:
        super().__init__()
        self.config: dict[str, Any] = {}
        self.metrics: dict[str, float] = {}
        self.written: list[str] = []

    def log_hyperparams(self, params: Any, *args: Any, **options: Any) -> None:
        self.config.update(params)
        self.written += [name for name in params if "protocol" in name]

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.metrics.update(metrics)


def named(metrics: Any, word: str = "miou") -> set[str]:
    return {name for name in metrics if word in name}


def test_a_fit_leaves_its_protocol_once_and_no_oracle_under_a_bare_name(tmp_path: Path):
    wandb, table = Configured(), CSVLogger(tmp_path, name="run", version=0)
    board = TensorBoardLogger(tmp_path, name="board", version=0)
    run = trainer(None, tmp_path, logger=[wandb, table, board], max_epochs=2, num_sanity_val_steps=1)
    run.fit(build(lr=1e-4, propagation_steps=0), loader(samples(4)), loader(samples(2)))
    table.save()
    board.finalize("success")

    expected = {"val/miou_true_tags", "val/miou_true_tags_oracle"}
    assert named(wandb.metrics) == expected
    with (tmp_path / "run" / "version_0" / "metrics.csv").open() as file:
        assert named(next(csv.reader(file))) == expected

    assert sorted(wandb.written) == ["val_protocol", "val_protocol_name"]  # nor of the sanity check
    protocol = wandb.config["val_protocol"]
    assert protocol["split"] == {"name": "val", "images": 2, "ids_sha256": ids_digest(["0", "1"])}
    assert (protocol["supervision"]["tags"], protocol["threshold"], protocol["checkpoint"]) == (
        "image",
        "default",
        None,
    )
    assert protocol["background"]["background_threshold"] == 0.15
    assert protocol["background"]["by_masks"] is False
    assert (protocol["maps"]["kind"], protocol["maps"]["propagation_steps"]) == ("CAM", 0)
    assert wandb.config["val_protocol_name"] == protocol_name(protocol)
    assert protocol_name(protocol).startswith("val, 2 images, true tags, threshold default, ")

    stored = yaml.full_load((tmp_path / "run" / "version_0" / "hparams.yaml").read_text())
    assert (stored["val_protocol"], stored["flip"]) == (protocol, False)  # beside the arguments of the module

    ((_, shown),) = texts(tmp_path / "board" / "version_0")["val/protocol"]
    assert "| supervision.tags | image |" in shown
    assert f"| name | {protocol_name(protocol)} |" in shown


def test_a_validation_after_the_fit_is_another_protocol(tmp_path: Path):
    wandb = Configured()
    run = trainer(None, tmp_path, logger=wandb, max_epochs=1, enable_checkpointing=False)
    module = build(lr=1e-4, eval_tags="predicted", tag_threshold=0.3, seed_threshold=0.4)
    run.fit(module, loader(samples(4)), loader(samples(2)))
    path = tmp_path / "last.ckpt"
    run.save_checkpoint(path)
    for _ in range(2):
        run.validate(module, loader(samples(2)), ckpt_path=path, weights_only=True, verbose=False)
    assert wandb.written.count("val_protocol") == 3
    protocol = wandb.config["val_protocol"]
    assert protocol["checkpoint"]["file"] == "last.ckpt"
    assert len(protocol["checkpoint"]["sha256"]) == 64
    assert (protocol["threshold"], protocol["background"]["background_threshold"]) == ("given", 0.4)
    assert protocol["background"]["by_masks"] is None  # nobody can know where the number is from
    assert protocol["tag_threshold"] == {"chosen": "given", "value": 0.3}
    assert protocol["maps"]["kind"] == "propagated CAM"
    assert json.loads(json.dumps(protocol)) == protocol

    run.test(module, loader(samples(2)), ckpt_path=path, weights_only=True, verbose=False)
    assert "test_protocol" in wandb.config
    expected = {"miou_predicted_tags", "miou_predicted_tags_oracle"}
    assert named(wandb.metrics) == {f"{split}/{name}" for split in ("val", "test") for name in expected}


@pytest.mark.parametrize(("tags", "name"), [("none", "miou"), ("image", "miou_true_tags")])
def test_label_images_drawn_with_true_tags_say_so(tmp_path: Path, tags: str, name: str):
    module = SegmentationModule(2, backbone="resnet14", weights="none", flip=False, eval_tags=tags, lr=1e-4)
    wandb = Configured()
    run = trainer(None, tmp_path, logger=wandb, max_epochs=1, num_sanity_val_steps=0)
    run.fit(module, loader(samples(4)), loader(samples(2)))
    assert named(wandb.metrics) == {f"val/{name}"}
    assert f"val/{name}" in module.logged_names()
    assert set(wandb.tables) == {f"val/{name.replace('miou', 'scores_by_class')}", "val/protocol"}
    protocol = wandb.config["val_protocol"]
    assert protocol["supervision"]["tags"] == (None if tags == "none" else "image")
    assert (protocol["background"], protocol["tag_threshold"], protocol["maps"]) == (None, None, None)


def test_without_a_logger_nothing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any) -> None:
        raise AssertionError

    monkeypatch.setattr("rca_lightning.modules.data_checks.score_protocol", refuse)
    run = trainer(None, tmp_path, max_epochs=1, logger=False)
    run.fit(build(lr=1e-4), loader(samples(2)), loader(samples(2)))
