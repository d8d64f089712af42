"""What is said when a training begins: random weights, a projection that nothing trains, a batch of one cell."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from rca_lightning import OneStageModule, RCAModule, RegionMemoryCallback, SegmentationModule
from rca_lightning.errors import ArgumentError

MODULES = [RCAModule, SegmentationModule, OneStageModule]
WARNED = "THE BACKBONE resnet14 STARTS FROM RANDOM WEIGHTS"


def batches(side: int = 48, batch_size: int = 2) -> DataLoader[Any]:
    torch.manual_seed(0)
    samples = [
        {
            "image": torch.randn(3, side, side),
            "tags": torch.tensor([1.0, index % 2]),
            "image_id": str(index),
            "mask": torch.randint(0, 3, (side, side)),
        }
        for index in range(4)
    ]
    return DataLoader(samples, batch_size=batch_size)  # type: ignore[arg-type]


def fit(module: Any, folder: Path, loader: DataLoader[Any] | None = None, **options: Any) -> Any:
    callbacks = [RegionMemoryCallback(slots=8)] if isinstance(module, RCAModule) else []
    trainer = quiet_trainer(folder, max_epochs=1, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, loader or batches(), **options)
    return trainer


def warnings(caplog: pytest.LogCaptureFixture) -> int:
    return sum(WARNED in record.getMessage() for record in caplog.records if record.levelno == logging.WARNING)


@pytest.mark.parametrize("kind", MODULES)
def test_random_weights_that_nobody_asked_for_are_warned_of_once(kind: Any, tmp_path: Path, caplog: Any):
    fit(kind(2, backbone="resnet14"), tmp_path)
    assert warnings(caplog) == 1
    assert "--model.weights FILE" in caplog.text


@pytest.mark.parametrize("kind", MODULES)
def test_random_weights_that_were_asked_for_are_not(kind: Any, tmp_path: Path, caplog: Any):
    fit(kind(2, backbone="resnet14", weights="none"), tmp_path)
    assert warnings(caplog) == 0


@pytest.mark.parametrize("kind", MODULES)
def test_weights_of_any_origin_are_not_warned_of(kind: Any, tmp_path: Path, caplog: Any):
    trained = kind(2, backbone="resnet14", weights="none")
    fit(trained, tmp_path).save_checkpoint(tmp_path / "a.ckpt")
    torch.save(trained.network.backbone.state_dict(), tmp_path / "backbone.pth")
    given = {"weights": tmp_path / "backbone.pth"}  # a path, not only text
    given |= {"backbone_mode": "trained"} if kind is RCAModule else {}
    fit(kind(2, backbone="resnet14", **given), tmp_path)
    fit(kind.load_from_checkpoint(tmp_path / "a.ckpt"), tmp_path)
    by_hand = kind(2, backbone="resnet14")
    by_hand.network.backbone.load_state_dict(trained.network.backbone.state_dict())
    fit(by_hand, tmp_path)
    resumed = kind(2, backbone="resnet14")
    trainer = quiet_trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[RegionMemoryCallback(slots=8)])
    trainer.fit(resumed, batches(), ckpt_path=tmp_path / "a.ckpt")
    assert warnings(caplog) == 0


def test_scores_and_predictions_are_not_warned_of(tmp_path: Path, caplog: Any):
    quiet_trainer(tmp_path).predict(RCAModule(2, backbone="resnet14"), batches())
    assert warnings(caplog) == 0


@pytest.mark.parametrize("options", [{"beta": 0.0, "contrast": False}, {"beta": 0.0, "alpha": 0.0}])
def test_projection_that_nothing_trains_is_refused(options: dict[str, Any], tmp_path: Path):
    module = RCAModule(2, backbone="resnet14", embedding_dim=8, weights="none", **options)
    with pytest.raises(ArgumentError, match=r"^embedding_dim=8: nothing trains this projection; leave it out"):
        fit(module, tmp_path)


@pytest.mark.parametrize(
    "options",
    [{"contrast": False}, {"beta": 0.0}, {"aggregation": False}, {"aggregation": False, "contrast": False}],
)
def test_projection_that_something_trains_moves(options: dict[str, Any], tmp_path: Path):
    """Or is not there: a plain CAM has no embeddings."""
    given = {"alpha": 1.0, "warmup_epochs": 0, "confidence": 0.0, "lr": 1e-4, "weight_decay": 0.0, **options}
    module = RCAModule(2, backbone="resnet14", embedding_dim=8, weights="none", **given)
    if module.network.projection is None:
        return
    before = module.network.projection.weight.clone()
    trainer = quiet_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=[RegionMemoryCallback(slots=8)])
    trainer.fit(module, batches())
    assert not torch.equal(module.network.projection.weight, before)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (RCAModule, {}),
        (RCAModule, {"standardize": False, "frozen_batchnorm": False}),
        (SegmentationModule, {"head": "linear"}),
        (SegmentationModule, {"head": "deeplabv2", "frozen_batchnorm": False}),
    ],
)
def test_batch_of_one_cell_is_refused_where_statistics_are_learned(kind: Any, options: Any, tmp_path: Path):
    module = kind(2, backbone="resnet14", weights="none", **options)
    with pytest.raises(ArgumentError, match=r"^crop_size, batch_size=\(\(16, 16\), 1\): a batch of a single cell"):
        fit(module, tmp_path, batches(16, 1))


@pytest.mark.parametrize("head", ["deeplabv2", "deeplabv3plus"])
def test_batch_of_one_cell_trains_where_none_are(head: str, tmp_path: Path):
    """Also the image pooling of DeepLab v3+, whose layers normalise groups of channels."""
    fit(SegmentationModule(2, backbone="resnet14", weights="none", head=head), tmp_path, batches(16, 1))  # type: ignore[arg-type]
