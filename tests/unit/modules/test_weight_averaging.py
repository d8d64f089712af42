"""Averaging callbacks: weights are averaged, prototypes, flags, counts and statistics are copied."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from tests.quiet_trainer import quiet_trainer
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel
from torch.utils.data import DataLoader

from rca_lightning import RCAModule, RegionMemoryCallback, SegmentationModule
from rca_lightning.errors import ArgumentError


class Observer(L.Callback):
    """Notes the prototypes that were written, and those that validations and checkpoints have."""

    def __init__(self) -> None:
        self.written: list[Tensor] = []
        self.validated: list[Tensor] = []

    def on_fit_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        reader = pl_module.network.aggregation
        write = reader.write

        def noted(prototypes: Tensor, valid: Tensor) -> None:
            # Another order at each clustering, as k-means gives them.
            order = torch.arange(len(prototypes)).roll(len(self.written))
            write(prototypes[order], valid[order])
            self.written.append(reader.prototypes.clone())

        reader.write = noted

    def on_validation_batch_start(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.validated.append(pl_module.network.aggregation.prototypes.clone())


def batches(number: int = 6) -> DataLoader[Any]:
    torch.manual_seed(0)
    samples = [
        {
            "image": torch.randn(3, 48, 48),
            "tags": torch.tensor([1.0, index % 2]),
            "image_id": str(index),
            "mask": torch.randint(0, 3, (48, 48)),
        }
        for index in range(number)
    ]
    return DataLoader(samples, batch_size=2)  # type: ignore[arg-type]


def rca(**options: Any) -> RCAModule:
    given = {"num_prototypes": 2, "background_prototypes": 3, "warmup_epochs": 1, "confidence": 0.0, **options}
    return RCAModule(2, backbone="resnet14", weights="none", lr=1e-3, flip=False, **given)


def is_buffer(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_buffers())


AVERAGING = [
    lambda: WeightAveraging(),  # whose mean refuses booleans
    lambda: EMAWeightAveraging(decay=0.5),
    lambda: EMAWeightAveraging(decay=0.9, update_every_n_steps=5),  # none at the end of some epochs
]


@pytest.mark.parametrize("memory_first", [True, False])
@pytest.mark.parametrize("averaging", AVERAGING, ids=["mean", "ema", "every fifth step"])
def test_prototypes_are_those_of_the_latest_clustering(averaging: Any, memory_first: bool, tmp_path: Path):
    module, observer = rca(), Observer()
    parts = [RegionMemoryCallback(slots=8), averaging()]
    saving = ModelCheckpoint(tmp_path, save_last=True, every_n_train_steps=1, save_top_k=0)  # also before the hooks
    callbacks = [*(parts if memory_first else parts[::-1]), observer, saving]
    trainer = quiet_trainer(
        tmp_path, max_epochs=4, num_sanity_val_steps=0, callbacks=callbacks, enable_checkpointing=True
    )
    trainer.fit(module, batches(), batches(2))
    assert len(observer.written) == 4
    assert not torch.equal(observer.written[-1], observer.written[-2])
    for seen, written in zip(observer.validated, observer.written, strict=True):
        assert torch.equal(seen, written)
    stored = torch.load(tmp_path / "last.ckpt", weights_only=True)
    for state in (stored["state_dict"], stored["current_model_state"], module.state_dict()):
        assert torch.equal(state["network.aggregation.prototypes"], observer.written[-1])
        assert state["network.aggregation.valid"].dtype == torch.bool
    trained, own = stored["current_model_state"], module.state_dict()
    assert all(torch.equal(own[name], value) for name, value in trained.items() if is_buffer(module, name))
    averaged = [name for name, value in trained.items() if not torch.equal(own[name], value)]
    assert "network.coarse_head.conv.weight" in averaged
    lengths = module.network.aggregation.prototypes[module.network.aggregation.valid].norm(dim=1)
    torch.testing.assert_close(lengths, torch.ones_like(lengths))


def test_class_of_each_prototype_stays(tmp_path: Path):
    """Of whole numbers a moving average gives the one below."""
    module = rca(num_prototypes=30)
    labels = module.network.aggregation.labels.clone()
    callbacks = [RegionMemoryCallback(slots=8), EMAWeightAveraging(decay=0.999)]
    quiet_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=callbacks).fit(module, batches())
    assert torch.equal(module.network.aggregation.labels, labels)


@pytest.mark.parametrize("options", [{"head": "linear"}, {"head": "deeplabv2", "frozen_batchnorm": False}])
@pytest.mark.parametrize("averaging", AVERAGING[:2], ids=["mean", "ema"])
def test_statistics_of_the_second_stage_are_copied(averaging: Any, options: dict[str, Any], tmp_path: Path):
    module = SegmentationModule(2, backbone="resnet14", weights="none", lr=1e-3, **options)
    trainer = quiet_trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=[averaging()])
    trainer.fit(module, batches())
    counts = [value for name, value in module.named_buffers() if name.endswith("num_batches_tracked")]
    assert 6 in {int(count) for count in counts}
    for callback in trainer.callbacks:
        if isinstance(callback, WeightAveraging):
            averaged = callback._average_model.module.state_dict()
            assert all(torch.equal(averaged[name], value) for name, value in module.named_buffers() if name in averaged)


def test_resumed_training_is_exact(tmp_path: Path):
    def fit(folder: str, path: Any = None) -> dict[str, Tensor]:
        module = rca()
        saving = ModelCheckpoint(tmp_path / folder, filename="{epoch}", save_top_k=-1)
        callbacks = [RegionMemoryCallback(slots=8), EMAWeightAveraging(decay=0.8), saving]
        trainer = quiet_trainer(
            tmp_path, max_epochs=4, limit_val_batches=0, callbacks=callbacks, enable_checkpointing=True
        )
        trainer.fit(module, batches(), ckpt_path=path)
        return dict(module.state_dict())

    torch.manual_seed(0)
    whole = fit("whole")
    resumed = fit("resumed", tmp_path / "whole" / "epoch=1.ckpt")
    torch.testing.assert_close(resumed, whole, rtol=0, atol=0)


def averaged_checkpoint(folder: Path) -> tuple[Path, Tensor]:
    """A checkpoint of an earlier version, whose prototypes are averages, and the prototypes that were trained with."""
    module = rca()
    callbacks = [RegionMemoryCallback(slots=8), EMAWeightAveraging(decay=0.8)]
    saving = ModelCheckpoint(folder, save_last=True)
    quiet_trainer(
        folder, max_epochs=2, limit_val_batches=0, callbacks=[*callbacks, saving], enable_checkpointing=True
    ).fit(module, batches())
    path = folder / "last.ckpt"
    content = torch.load(path, weights_only=True)
    trained = content["current_model_state"]["network.aggregation.prototypes"].clone()
    content["state_dict"]["network.aggregation.prototypes"] = trained.flip(0) * 0.5
    torch.save(content, path)
    return path, trained


def test_averages_of_prototypes_in_a_checkpoint_are_not_loaded(tmp_path: Path):
    path, trained = averaged_checkpoint(tmp_path)
    loaded = RCAModule.load_from_checkpoint(path)
    assert torch.equal(loaded.network.aggregation.prototypes, trained)


def test_other_prototypes_can_be_begun_with_averaged_weights(tmp_path: Path):
    path, _ = averaged_checkpoint(tmp_path)
    module = rca(num_prototypes=4)
    callbacks = [RegionMemoryCallback(slots=8, on_mismatch="rebuild"), EMAWeightAveraging(decay=0.8)]
    trainer = quiet_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=callbacks)
    trainer.fit(module, batches(), ckpt_path=path)
    assert module.network.aggregation.prototypes.shape[0] == 2 * 4 + 3
    assert bool(module.network.aggregation.valid.any())


@pytest.mark.parametrize("options", [{}, {"frozen_batchnorm": False, "frozen_stages": 1}])
def test_stochastic_weight_averaging_is_refused_with_frozen_statistics(options: dict[str, Any], tmp_path: Path):
    callbacks = [RegionMemoryCallback(slots=8), StochasticWeightAveraging(1e-3, swa_epoch_start=1)]
    trainer = quiet_trainer(tmp_path, max_epochs=2, limit_val_batches=0, callbacks=callbacks)
    with pytest.raises(ArgumentError, match=r"^trainer\.callbacks='StochasticWeightAveraging': it would reset"):
        trainer.fit(rca(**options), batches())


def test_stochastic_weight_averaging_keeps_the_latest_prototypes(tmp_path: Path):
    module, observer = rca(frozen_batchnorm=False), Observer()
    swa = StochasticWeightAveraging(1e-3, swa_epoch_start=1, annealing_epochs=1)
    callbacks = [RegionMemoryCallback(slots=8), swa, observer]
    quiet_trainer(tmp_path, max_epochs=3, limit_val_batches=0, callbacks=callbacks).fit(module, batches())
    assert torch.equal(module.network.aggregation.prototypes, observer.written[-1])
    assert bool(module.network.aggregation.valid.any())


def test_averaged_model_of_torch_copies_them_unless_it_is_told_otherwise():
    network = rca().network
    averaged = AveragedModel(network)
    prototypes = F.normalize(torch.randn(7, network.aggregation.prototypes.shape[1]), dim=1)
    for order in (torch.arange(7), torch.arange(7).flip(0)):
        network.aggregation.write(prototypes[order], torch.ones(7, dtype=torch.bool))
        averaged.update_parameters(network)
    assert torch.equal(averaged.module.aggregation.prototypes, prototypes.flip(0))
