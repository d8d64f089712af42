"""Training on batches with real NaN and infinity in them, through the Trainer."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins import MixedPrecision
from tests.quiet_trainer import quiet_trainer
from torch import Tensor
from torch.utils.data import DataLoader

from rca_lightning import AttentionAccumulation, RCAModule, RegionMemoryCallback, SegmentationModule
from rca_lightning.errors import ArgumentError, NonFiniteError


def sample(number: int, poison: float | None = None) -> dict[str, Any]:
    """A batch of two images; the second may have one pixel that is not finite."""
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(number))
    if poison is not None:
        images[1, 0, 5, 5] = poison
    return {
        "image": images,
        "tags": torch.eye(2),
        "image_id": [f"a{number}", f"b{number}"],
        "mask": torch.randint(0, 3, (2, 64, 64), generator=torch.Generator().manual_seed(number)),
        "original_size": torch.full((2, 2), 64),
        "window": torch.tensor([[1.0, 0, 0], [0, 1, 0]]).repeat(2, 1, 1),
    }


def build(**options: Any) -> RCAModule:
    torch.manual_seed(0)
    common = {"backbone": "resnet14", "frozen_batchnorm": False, "lr": 1e-3, "confidence": 0.0, "num_prototypes": 2,
              "background_prototypes": 2, "warmup_epochs": 1, "weight_decay": 0.1}  # fmt: skip
    return RCAModule(2, ["cat", "dog"], **(common | options))


class Watch(L.Callback):
    """Weights after each batch, and how many regions it gave."""

    def __init__(self) -> None:
        self.weights: list[Tensor] = []
        self.regions: list[int] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights.append(torch.cat([weight.detach().flatten() for weight in pl_module.parameters()]))
        self.regions.append(len(outputs["regions"]))


def fit(folder: Path, module: L.LightningModule, batches: list[dict[str, Any]], *more: L.Callback, **options: Any):
    callbacks = [*([RegionMemoryCallback(slots=6, backend="torch")] if isinstance(module, RCAModule) else []), *more]
    trainer = quiet_trainer(folder, **{"max_epochs": 1, "callbacks": callbacks, **options})
    trainer.fit(module, DataLoader(batches, batch_size=None))
    return trainer


@pytest.mark.parametrize("poison", [torch.nan, torch.inf])
def test_names_step_image_and_place(tmp_path, poison):
    with pytest.raises(NonFiniteError) as caught:
        fit(tmp_path, build(), [sample(0), sample(1, poison), sample(2)])
    text = str(caught.value)
    assert text.startswith("pixels of 'b1' not finite, then features")
    for part in ("embeddings", "loss_coarse", "the batch of 'a1', 'b1'", "step 1, epoch 0, batch 2", "on_non_finite"):
        assert part in text


def test_skips_and_counts_as_if_the_batch_were_not_there(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, "rca_lightning"):
        module, watch = build(on_non_finite="skip", contrast=False, poly_power=0.0), Watch()
        trainer = fit(tmp_path, module, [sample(0), sample(1, torch.nan), sample(2)], watch, max_epochs=2)
    other, plain = build(contrast=False, poly_power=0.0), Watch()
    fit(tmp_path, other, [sample(0), sample(2)], plain, max_epochs=2)
    for name, value in module.state_dict().items():
        assert torch.isfinite(value).all(), name
        torch.testing.assert_close(value, other.state_dict()[name], rtol=0, atol=0, msg=name)
    assert torch.equal(watch.weights[0], watch.weights[1])  # not even by momentum or weight decay
    assert watch.regions[1] == 0
    assert module.memory.refused == 0
    assert torch.equal(module.memory.embeddings, other.memory.embeddings)
    assert module.skipped_batches == 2
    assert trainer.callback_metrics["train/skipped_batches"] == 2
    assert "batch left out: pixels of 'b1' not finite" in caplog.text
    assert "2 training batches were left out of this run" in caplog.text


@pytest.mark.parametrize("poisoned", [0, 1])
def test_accumulation_goes_on_without_the_batch(tmp_path, poisoned):
    """One usable batch of two, with SGD without momentum: half the step that it makes alone."""
    plain = {"contrast": False, "momentum": 0.0, "weight_decay": 0.0, "poly_power": 0.0}
    batches = [sample(0), sample(1, torch.nan)][:: -1 if poisoned == 0 else 1]
    half, whole = build(on_non_finite="skip", **plain), build(**plain)
    before = {name: value.detach().clone() for name, value in whole.named_parameters()}
    fit(tmp_path, half, batches, accumulate_grad_batches=2)
    fit(tmp_path, whole, [sample(0)])
    found = dict(half.named_parameters())
    for name, value in whole.named_parameters():
        torch.testing.assert_close(found[name] - before[name], (value - before[name]) / 2, rtol=1e-3, atol=1e-6)


class Overflowing(L.Callback):
    """Infinite gradients, of a finite loss, in the first step."""

    def __init__(self) -> None:
        self.scales: list[float] = []

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == 0:
            pl_module.network.coarse_head.conv.weight.grad.fill_(torch.inf)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.scales.append(trainer.precision_plugin.scaler.get_scale())


@pytest.mark.parametrize("on_non_finite", ["raise", "skip"])
def test_grad_scaler_skips_steps_of_its_own(tmp_path, on_non_finite):
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=8.0))
    module, watch, overflow = build(on_non_finite=on_non_finite), Watch(), Overflowing()
    batches = [sample(0), sample(1, torch.nan if on_non_finite == "skip" else None), sample(2)]
    fit(tmp_path, module, batches, watch, overflow, plugins=[precision])
    assert overflow.scales[0] == 4.0  # halved by the infinite gradients, and by nothing after
    assert overflow.scales[1:] == [4.0, 4.0]
    assert torch.equal(watch.weights[1], watch.weights[0]) == (on_non_finite == "skip")
    assert not torch.equal(watch.weights[2], watch.weights[1])
    assert module.skipped_batches == (on_non_finite == "skip")
    assert torch.isfinite(watch.weights[-1]).all()


@pytest.mark.parametrize("on_non_finite", ["raise", "skip"])
def test_broken_weights_are_named_and_never_skipped(tmp_path, on_non_finite):
    module = build(on_non_finite=on_non_finite)
    with torch.no_grad():
        module.network.coarse_head.conv.weight[0, 0] = torch.nan
    with pytest.raises(
        NonFiniteError, match=r"network\.coarse_head\.conv\.weight: this weight is not finite at step 0"
    ):
        fit(tmp_path, module, [sample(0)])


class BreakMemory(L.Callback):
    """Damage that no rule of the memory lets in."""

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.memory.embeddings[0, 0] = torch.nan


def test_memory_and_contrast_are_named(tmp_path):
    with pytest.raises(NonFiniteError, match=r"^memory not finite, then loss_contrast"):
        fit(tmp_path, build(alpha=1.0), [sample(0)], BreakMemory(), max_epochs=2)


def test_loss_alone_is_named(tmp_path, monkeypatch):
    module = build()
    contrast = module.loss.forward

    def overflowing(*arguments, **options):
        objective = contrast(*arguments, **options)
        objective.parts["contrast"] = objective.parts["contrast"] + torch.inf
        objective.total = objective.total + torch.inf
        return objective

    monkeypatch.setattr(module.loss, "forward", overflowing)
    with pytest.raises(NonFiniteError, match=r"^loss_contrast not finite, then loss, in the batch of 'a0', 'b0'"):
        fit(tmp_path, module, [sample(0)])


def test_accumulated_maps_leave_the_batch_out(tmp_path):
    keeper = AttentionAccumulation(cells=8, warmup_epochs=0)
    fit(tmp_path, build(on_non_finite="skip"), [sample(0), sample(1, torch.nan)], keeper)
    assert keeper.seeds("a0", [0], (64, 64)) is not None
    assert keeper.seeds("a1", [0], (64, 64)) is None


def test_every_batch_may_be_left_out(tmp_path):
    module = build(on_non_finite="skip")
    before = {name: value.clone() for name, value in module.state_dict().items()}
    fit(tmp_path, module, [sample(0, torch.nan), sample(1, torch.inf)], max_epochs=2)
    assert module.skipped_batches == 4
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("tag_weight", [0.0, 0.5])
def test_segmentation(tmp_path, tag_weight):
    def network(**options):
        torch.manual_seed(0)
        return SegmentationModule(
            2, backbone="resnet14", frozen_batchnorm=False, lr=1e-3, tag_weight=tag_weight, head="linear", **options
        )

    with pytest.raises(NonFiniteError, match=r"^pixels of 'b1' not finite, then logits"):
        fit(tmp_path, network(), [sample(0), sample(1, torch.nan)])
    module = network(on_non_finite="skip")
    unlabelled = sample(1, torch.nan) | {"mask": torch.full((2, 64, 64), 255)}  # no pixel of it is in the loss
    fit(tmp_path, module, [unlabelled, sample(0), sample(1, torch.nan)])
    assert module.skipped_batches == 2
    assert all(torch.isfinite(value).all() for value in module.state_dict().values())


def test_unknown_choice_is_refused():
    with pytest.raises(ArgumentError, match="on_non_finite='ignore': give one of raise, skip"):
        build(on_non_finite="ignore")
