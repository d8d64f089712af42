"""Checkpoints of earlier layouts are brought up to date, those of later ones refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from rca_lightning.checkpoints.compatibility import FORMAT, KEY
from rca_lightning.checkpoints.reading import check_checkpoint, read_checkpoint
from rca_lightning.errors import WeightsError
from rca_lightning.modules.rca_module import RCAModule

FACTORS = "network.aggregation.factors"


def network() -> RCAModule:
    torch.manual_seed(0)
    return RCAModule(num_classes=2, backbone="resnet14", num_prototypes=2, background_prototypes=1)


def written(path: Path) -> dict:
    trainer = quiet_trainer(path.parent, limit_predict_batches=0)
    trainer.predict(network(), DataLoader([0]), return_predictions=False)
    trainer.save_checkpoint(path, weights_only=True)
    return torch.load(path, weights_only=True)


def of_format(number: int, content: dict, **changes: object) -> dict:
    """The layout that version 0.1 wrote, with a number or, before that, without."""
    old = {name: value for name, value in content.items() if name != KEY} | ({KEY: number} if number else {})
    old["state_dict"] = {**content["state_dict"], FACTORS: torch.ones(5)}
    old["hyper_parameters"] = {**content["hyper_parameters"], "context": "prototypes", **changes}
    return old


def test_every_checkpoint_has_a_number(tmp_path: Path):
    assert written(tmp_path / "a.ckpt")[KEY] == FORMAT == 3


@pytest.mark.parametrize("number", [0, 1])
def test_earlier_format_is_migrated_wherever_it_is_read(tmp_path: Path, number: int):
    path = tmp_path / "old.ckpt"
    new = written(tmp_path / "new.ckpt")
    torch.save(of_format(number, new), path)
    check_checkpoint(str(path), "localize")
    content = read_checkpoint(path)
    assert content[KEY] == FORMAT
    assert content["state_dict"].keys() == new["state_dict"].keys()
    assert "context" not in content["hyper_parameters"]
    module = RCAModule.load_from_checkpoint(path)
    assert all(torch.equal(value, new["state_dict"][name]) for name, value in module.state_dict().items())
    other = network()
    with torch.no_grad():
        other.network.aggregation.prototypes.fill_(3.0)
    trainer = quiet_trainer(tmp_path, limit_predict_batches=0)
    trainer.predict(other, DataLoader([0]), ckpt_path=path, return_predictions=False)
    assert not other.network.aggregation.prototypes.any()


def test_modules_from_before_propagation_and_frozen_backbones_stay_what_they_are(tmp_path: Path):
    content = written(tmp_path / "new.ckpt")
    for name in ("propagation_steps", "propagation_power", "backbone_mode", "attention_region_threshold"):
        del content["hyper_parameters"][name]
    torch.save(content | {KEY: 2}, tmp_path / "old.ckpt")
    module = RCAModule.load_from_checkpoint(tmp_path / "old.ckpt")
    assert module.hparams["propagation_steps"] == 0
    assert not module.is_frozen
    assert module.hparams["attention_region_threshold"] == 0.5


@pytest.mark.parametrize("number", [1, 3])
def test_modules_from_before_the_calibration_of_tags_predict_as_they_did(tmp_path: Path, number: int):
    content = written(tmp_path / "new.ckpt") | {KEY: number}
    content["state_dict"] = {k: v for k, v in content["state_dict"].items() if not k.startswith("tag_calibration.")}
    content["hyper_parameters"]["tag_threshold"] = 0.5
    torch.save(content, tmp_path / "old.ckpt")
    module = RCAModule.load_from_checkpoint(tmp_path / "old.ckpt")
    assert module.tag_threshold == 0.5
    assert not module.tag_calibration.fitted
    other = network()
    other.tag_calibration.fitted.fill_(True)
    trainer = quiet_trainer(tmp_path, limit_predict_batches=0)
    trainer.predict(other, DataLoader([0]), ckpt_path=tmp_path / "old.ckpt", return_predictions=False)
    assert not other.tag_calibration.fitted
    assert other.tag_threshold.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("number", [1, 2])
def test_networks_of_earlier_formats_pad_with_zeros(tmp_path: Path, number: int):
    path = tmp_path / "old.ckpt"
    content = {**written(path), KEY: number}
    del content["hyper_parameters"]["padding_mode"]
    torch.save(content, path)
    assert RCAModule.load_from_checkpoint(path).hparams["padding_mode"] == "zeros"


def test_what_version_0_1_alone_can_run_is_refused(tmp_path: Path):
    path, new = tmp_path / "old.ckpt", written(tmp_path / "new.ckpt")
    old = of_format(1, new)
    old["state_dict"][FACTORS][2] = 0.5
    torch.save(old, path)
    with pytest.raises(WeightsError, match=r"concentration=True, gone since 0\.2; read it with rca_lightning 0\.1"):
        RCAModule.load_from_checkpoint(path)
    torch.save(of_format(1, new, context="co_attention"), path)
    with pytest.raises(WeightsError, match="context='co_attention', gone"):
        RCAModule.load_from_checkpoint(path)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (4, r"has format 4, rca_lightning \S+ reads formats up to 3; update"),
        (-1, "is no format"),
        ("1", "is no format"),
    ],
)
def test_other_numbers_are_refused(tmp_path: Path, number: object, message: str):
    path = tmp_path / "a.ckpt"
    torch.save({**written(path), KEY: number}, path)
    for read in (lambda: check_checkpoint(str(path)), lambda: RCAModule.load_from_checkpoint(path)):
        with pytest.raises(WeightsError, match=message) as caught:
            read()
        assert "a.ckpt" in str(caught.value)
