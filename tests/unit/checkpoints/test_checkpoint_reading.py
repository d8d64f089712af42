"""Files that are offered as checkpoints: those of `rca fit` pass, everything else is named in one sentence."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from torch.utils.data import DataLoader

from rca_lightning.checkpoints.reading import check_checkpoint, check_fit, read_checkpoint
from rca_lightning.errors import ArgumentError, RCAError, WeightsError
from rca_lightning.modules.rca_module import RCAModule


class Hostile:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.mark),)


def network(**options) -> RCAModule:
    return RCAModule(**({"num_classes": 2, "backbone": "resnet18", "background_prototypes": 0} | options))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "last.ckpt"
    trainer = quiet_trainer(path.parent, limit_predict_batches=0)
    trainer.predict(network(), DataLoader([0]), return_predictions=False)
    trainer.save_checkpoint(path, weights_only=True)
    return path


def test_checkpoint_of_lightning_passes(checkpoint: Path):
    check_checkpoint(str(checkpoint))


@pytest.mark.parametrize("keyword", ["last", "hpc"])
def test_words_that_lightning_looks_up_pass(keyword: str):
    check_checkpoint(keyword)


@pytest.mark.parametrize(
    ("path", "message"),
    [("best", "^ckpt_path='best': only the process that trained knows it"), ("", "^ckpt_path='': give the path")],
)
def test_words_that_no_new_process_can_look_up(path: str, message: str):
    with pytest.raises(ArgumentError, match=message):
        check_checkpoint(path)


def test_missing_file_is_named():
    with pytest.raises(ArgumentError, match=r"ckpt_path='/nowhere/a\.ckpt': there is no such file"):
        check_checkpoint("/nowhere/a.ckpt")


@pytest.mark.parametrize("address", ["https://example.org/a.ckpt", "s3://bucket/a.ckpt"])
def test_address_is_not_downloaded(address: str):
    with pytest.raises(ArgumentError, match=r"^ckpt_path='.*a\.ckpt': checkpoints are not downloaded; fetch the file"):
        check_checkpoint(address)
    with pytest.raises(ArgumentError, match=r"^checkpoint_path='.*a\.ckpt': checkpoints are not downloaded"):
        RCAModule.load_from_checkpoint(address)


def test_folder_is_no_checkpoint(tmp_path: Path):
    with pytest.raises(ArgumentError, match="this is a folder; give a checkpoint in it"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04 cut short"])
def test_damaged_file_is_named(tmp_path: Path, content: bytes):
    path = tmp_path / "a.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match=r"a\.ckpt' was not loaded") as caught:
        check_checkpoint(str(path))
    assert "\n" not in str(caught.value)


def test_code_in_a_file_is_not_run(tmp_path: Path):
    mark, path = tmp_path / "ran", tmp_path / "a.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6", "more": Hostile(mark)}, path)
    with pytest.raises(WeightsError, match="more than tensors"):
        check_checkpoint(str(path))
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.exists()  # so there was code to run


def test_module_is_loaded_without_running_code(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what is not asked for explicitly unpickles anything
    mark, path = tmp_path / "ran", tmp_path / "a.ckpt"
    torch.save({**torch.load(checkpoint, weights_only=True), "more": Hostile(mark)}, path)
    with pytest.raises(WeightsError, match=r"^checkpoint_path='.*a\.ckpt' was not loaded: .*more than tensors"):
        RCAModule.load_from_checkpoint(path)
    with pytest.raises(pickle.UnpicklingError):
        RCAModule.load_from_checkpoint(io.BytesIO(path.read_bytes()))
    assert not mark.exists()
    assert RCAModule.load_from_checkpoint(str(path), weights_only=False).hparams["num_classes"] == 2
    assert mark.exists()  # so there was code to run


def test_arguments_of_loading_reach_lightning(checkpoint: Path):
    module = RCAModule.load_from_checkpoint(checkpoint, map_location="cpu", flip=False, tag_threshold=0.25)
    assert (module.hparams["flip"], module.hparams["tag_threshold"]) == (False, 0.25)
    saved = torch.load(checkpoint, weights_only=True)["state_dict"]
    assert saved.keys() == module.state_dict().keys()
    assert all(torch.equal(value, saved[name]) for name, value in module.state_dict().items())
    assert isinstance(RCAModule.load_from_checkpoint(io.BytesIO(checkpoint.read_bytes())), RCAModule)


@pytest.mark.parametrize("content", [{"conv1.weight": torch.zeros(1)}, {"state_dict": {}}, [1]], ids=str)
def test_other_files_of_tensors_are_no_checkpoints(tmp_path: Path, content: object):
    path = tmp_path / "a.pth"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=r"a\.pth' is no checkpoint of rca fit; .* go into --model\.weights"):
        check_checkpoint(str(path))


def test_differences_are_counted_and_three_are_shown():
    needed = {name: torch.zeros(2) for name in "abcde"}
    found = {"a": torch.zeros(3), "b": torch.zeros(2), "z": torch.zeros(1)}
    with pytest.raises(WeightsError) as caught:
        check_fit(found, needed, {"backbone": "vgg16", "num_classes": 7})
    text = str(caught.value)
    assert "(backbone='vgg16', num_classes=7): c is missing; d is missing; e is missing and 2 more." in text
    with pytest.raises(WeightsError, match=r": z is surplus; a \(3,\) instead of \(2,\)\. Leave out"):
        check_fit(found, {"a": torch.zeros(2), "b": torch.zeros(2)}, {})
    check_fit(needed, needed, {})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "resnet34"}, r"of another network \(backbone='resnet18', num_classes=2\)"),
        ({"num_classes": 3}, "does not fit this run: num_classes 2 in the checkpoint, 3 in this run"),
        ({"num_prototypes": 7}, "does not fit this run: num_prototypes 20 in the checkpoint, 7 in this run"),
        ({"num_prototypes": 10, "background_prototypes": 20}, "num_prototypes 20 .* 10 in this run; background_proto"),
    ],
)
def test_module_refuses_the_checkpoint_of_another_network(checkpoint: Path, options: dict, message: str):
    data = DataLoader([0])
    with pytest.raises(RCAError, match=message):
        quiet_trainer(checkpoint.parent).predict(network(**options), data, ckpt_path=checkpoint)
    assert RCAModule.load_from_checkpoint(checkpoint).hparams["num_classes"] == 2


@pytest.mark.parametrize("name", ["registry", "registry:model:v2", "REGISTRY"])
def test_names_of_a_registry_pass(name: str):
    check_checkpoint(name)


@pytest.mark.parametrize("name", ["registry", "registry_runs.ckpt", "registry:v1"])
def test_file_that_is_called_like_a_registry_is_checked(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(b"hello\n")
    with pytest.raises(WeightsError):
        check_checkpoint(name)
    (tmp_path / name).unlink()
    if name == "registry_runs.ckpt":
        with pytest.raises(ArgumentError, match="there is no such file"):
            check_checkpoint(name)
