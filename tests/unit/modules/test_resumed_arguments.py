"""Arguments that are given when training goes on: each acts, or is refused in one line."""

from __future__ import annotations

import copy
import inspect
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from tests.unit.modules.test_finite_steps import build, sample
from torch.utils.data import DataLoader

from rca_lightning import RCAModule, RegionMemoryCallback, SegmentationModule
from rca_lightning.errors import ArgumentError, RCAError, WeightsError

BATCHES = [sample(number) for number in range(3)]


def segmenter(**options: Any) -> SegmentationModule:
    torch.manual_seed(0)
    common = {"backbone": "resnet14", "frozen_batchnorm": False, "lr": 1e-3, "weight_decay": 0.1}
    return SegmentationModule(2, ["cat", "dog"], **(common | options))


class Rates(L.Callback):
    """Options of every group of the optimizer at each step."""

    def __init__(self) -> None:
        self.groups: list[list[dict[str, Any]]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        groups = trainer.optimizers[0].param_groups
        self.groups.append([{name: value for name, value in group.items() if name != "params"} for group in groups])


def fit(folder: Path, module: L.LightningModule, *more: L.Callback, epochs: int = 4, **options: Any) -> L.Trainer:
    memory = [RegionMemoryCallback(slots=6, backend="torch")] if isinstance(module, RCAModule) else []
    trainer = quiet_trainer(folder, max_epochs=epochs, callbacks=[*memory, *more])
    trainer.fit(module, DataLoader(BATCHES, batch_size=None), **options)
    return trainer


class StopAfterFirst(L.Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = True


def stopped(folder: Path, module: L.LightningModule) -> Path:
    """A checkpoint after the first of four epochs."""
    fit(folder, module, StopAfterFirst()).save_checkpoint(folder / "first.ckpt")
    return folder / "first.ckpt"


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return stopped(tmp_path_factory.mktemp("first"), segmenter())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lr": 5e-4},
        {"new_layer_lr_ratio": 3.0},
        {"weight_decay": 0.3},
        {"momentum": 0.5},
        {"poly_power": 2.0},
        {"lr": 5e-4, "poly_power": 2.0},
    ],
    ids=str,
)
def test_optimizer_and_schedule_are_those_of_a_run_with_the_arguments(
    first: Path, tmp_path: Path, changes: dict, caplog: pytest.LogCaptureFixture
):
    whole, resumed = Rates(), Rates()
    fit(tmp_path, segmenter(**changes), whole)
    module = segmenter(**changes)
    with caplog.at_level(logging.INFO, "rca_lightning"):
        trainer = fit(tmp_path, module, resumed, ckpt_path=first)
    assert resumed.groups == whole.groups[3:]
    assert len(resumed.groups) == 9
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    recorded = torch.load(tmp_path / "last.ckpt", weights_only=True)["hyper_parameters"]
    for name, value in changes.items():
        assert recorded[name] == value
        assert f"{name}={value} (" in caplog.text
    assert ("training goes on with" in caplog.text) == bool(changes)


def test_first_step_has_the_rate_of_the_new_number_of_epochs(first: Path, tmp_path: Path):
    rates = Rates()
    fit(tmp_path, segmenter(), rates, ckpt_path=first, epochs=2)
    assert [step[0]["lr"] for step in rates.groups] == pytest.approx(
        [1e-3 * (1 - step / 6) ** 0.9 for step in (3, 4, 5)]
    )


def test_adamw_and_regions_too(tmp_path: Path):
    path = stopped(tmp_path, build(optimizer="adamw"))
    whole, resumed = Rates(), Rates()
    fit(tmp_path, build(optimizer="adamw", lr=1e-4, weight_decay=0.0), whole)
    trainer = fit(tmp_path, build(optimizer="adamw", lr=1e-4, weight_decay=0.0), resumed, ckpt_path=path)
    assert resumed.groups == whole.groups[3:]
    assert {int(state["step"]) for state in trainer.optimizers[0].state.values()} == {12}, "its state goes on"


def test_another_optimizer_is_refused(first: Path, tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"^optimizer='adamw': the checkpoint holds the state of 'sgd'; give"):
        fit(tmp_path, segmenter(optimizer="adamw"), ckpt_path=first)


def test_weights_alone_are_refused(tmp_path: Path):
    trainer = fit(tmp_path, segmenter(), epochs=1)
    trainer.save_checkpoint(tmp_path / "weights.ckpt", weights_only=True)
    with pytest.raises(WeightsError, match=r"weights\.ckpt' holds weights alone, no state of the optimizer; give a"):
        fit(tmp_path, segmenter(), ckpt_path=tmp_path / "weights.ckpt")


@pytest.mark.parametrize("changes", [{"frozen_stages": 2}, {"frozen_batchnorm": True}], ids=str)
def test_other_trained_weights_are_refused(first: Path, tmp_path: Path, changes: dict):
    with pytest.raises(WeightsError, match=r"does not fit this run: it is of \[\d+, \d+\] weights, \[\d+, \d+\] are"):
        fit(tmp_path, segmenter(**changes), ckpt_path=first)


def damage_moments(content: dict) -> None:
    content["optimizer_states"][0]["state"][0]["momentum_buffer"] = torch.zeros(3)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: content["optimizer_states"].clear(), "damaged"),
        (lambda content: content.update(optimizer_states=7), "damaged"),
        (lambda content: content["optimizer_states"][0].pop("param_groups"), "damaged .KeyError"),
        (lambda content: content["optimizer_states"][0].update(state=[]), "damaged"),
        (damage_moments, r"momentum_buffer \(3,\) for a weight"),
        (lambda content: content["lr_schedulers"].clear(), "damaged"),
        (lambda content: content["lr_schedulers"][0].update(base_lrs=[0.1]), "damaged .no schedule"),
        (lambda content: content["loops"]["fit_loop"].pop("epoch_progress"), "counts of epochs and batches"),
    ],
)
def test_damaged_state_is_one_line(first: Path, tmp_path: Path, damage: Callable[[dict], Any], message: str):
    content = torch.load(first, weights_only=True)
    damage(content)
    torch.save(content, tmp_path / "damaged.ckpt")
    with pytest.raises(WeightsError, match=message) as caught:
        fit(tmp_path, segmenter(), ckpt_path=tmp_path / "damaged.ckpt")
    assert "\n" not in str(caught.value)


# Another value of every argument but those of the optimizer, above, and the weights, which a checkpoint replaces.
OTHERS: dict[str, Any] = {
    "num_classes": 3,
    "class_names": ["cat", "cow"],
    "backbone": "resnet18",
    "output_stride": 8,
    "stride_in": "1x1",
    "padding_mode": "replicate",
    "backbone_mode": "frozen",
    "frozen_batchnorm": True,
    "frozen_stages": 1,
    "channels_last": True,
    "contrast": False,
    "aggregation": False,
    "embedding_dim": 8,
    "embedding_stages": 1,
    "standardize": False,
    "alpha": 0.5,
    "beta": 0.0,
    "contrast_temperature": 0.5,
    "positives": "hardest",
    "attention_temperature": 0.5,
    "normalize_attention": False,
    "attention_classes": "all",
    "num_prototypes": 3,
    "background_prototypes": 3,
    "region_threshold": 0.4,
    "attention_region_threshold": 0.4,
    "region_rule": "mean",
    "region_map": "coarse",
    "background_threshold": 0.1,
    "attention_background_threshold": 0.1,
    "confidence": 0.1,
    "warmup_epochs": 3,
    "projection": "pca",
    "propagation_steps": 2,
    "propagation_power": 3.0,
    "final_map": "coarse",
    "scales": (0.5,),
    "flip": False,
    "max_side": 100,
    "eval_tags": "predicted",
    "predict_tags": "predicted",
    "tag_threshold": 0.4,
    "seed_threshold": 0.4,
    "on_non_finite": "skip",
    "head": "linear",
    "tag_weight": 1.0,
    "crf": True,
}
OF_SEGMENTER = {"eval_tags": "image", "predict_tags": "image"}
ELSEWHERE = {"optimizer", "lr", "new_layer_lr_ratio", "weight_decay", "momentum", "poly_power"} | {
    "weights",
    "weights_sha256",
    "prompts",  # a head of text needs a backbone of CLIP; integration/test_prompts.py
    "num_prompts",
    "propagation_affinity",  # another than the default needs a transformer; test_transformer_fit.py
}


@pytest.mark.parametrize(
    ("make", "argument"),
    [
        (make, argument)
        for make, of in ((build, RCAModule), (segmenter, SegmentationModule))
        for argument in inspect.signature(of).parameters
        if argument not in ELSEWHERE
    ],
)
def test_every_other_argument_is_refused_or_not_part_of_the_state(make: Callable, argument: str):
    """What is not in the state dict is not replaced by that of a checkpoint, so it acts."""
    value = OTHERS[argument] if make is build else OF_SEGMENTER.get(argument, OTHERS[argument])
    before = make(backbone="resnet50" if argument == "stride_in" else "resnet14")
    named = {"num_classes": 2, "class_names": ["cat", "dog"], argument: value}
    if argument == "num_classes":
        named["class_names"] = ["cat", "dog", "cow"]
    if argument == "backbone_mode":
        named |= {"contrast": False, "beta": 0.0, "projection": "pca"}
    options = {name: value for name, value in before.hparams.items() if name not in named}
    torch.manual_seed(0)
    module = type(before)(**named, **options)
    assert module.hparams[argument] == value != before.hparams[argument]
    checkpoint = {
        "state_dict": before.state_dict(),
        "hyper_parameters": copy.deepcopy(dict(before.hparams)),
        "pytorch-lightning_version": "2.6",
    }
    own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    try:
        module.on_load_checkpoint(checkpoint)
    except RCAError:
        return
    assert all(torch.equal(tensor, checkpoint["state_dict"][name]) for name, tensor in own.items())
