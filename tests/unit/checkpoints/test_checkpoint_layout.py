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


def of_format_0(content: dict) -> dict:
    """The layout before checkpoints had a number and prototypes a temperature of their own."""
    state = {name: value for name, value in content["state_dict"].items() if name != FACTORS}
    return {**{name: value for name, value in content.items() if name != KEY}, "state_dict": state}


def test_every_checkpoint_has_a_number(tmp_path: Path):
    assert written(tmp_path / "a.ckpt")[KEY] == FORMAT == 1


def test_format_0_is_migrated_wherever_it_is_read(tmp_path: Path):
    path = tmp_path / "old.ckpt"
    new = written(tmp_path / "new.ckpt")
    torch.save(of_format_0(new), path)
    assert FACTORS not in torch.load(path, weights_only=True)["state_dict"]
    check_checkpoint(str(path), "localize")
    content = read_checkpoint(path)
    assert content[KEY] == 1
    assert content["state_dict"][FACTORS].tolist() == [1.0] * 5
    module = RCAModule.load_from_checkpoint(path)
    assert all(torch.equal(value, new["state_dict"][name]) for name, value in module.state_dict().items())
    other = network()
    with torch.no_grad():
        other.network.aggregation.factors.fill_(3.0)
    trainer = quiet_trainer(tmp_path, limit_predict_batches=0)
    trainer.predict(other, DataLoader([0]), ckpt_path=path, return_predictions=False)
    assert other.network.aggregation.factors.tolist() == [1.0] * 5


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (2, r"has format 2, rca_lightning \S+ reads formats up to 1; update"),
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
