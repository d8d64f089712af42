"""Rounds behind a frozen backbone: regions, prototypes and labels of each, and when they end."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import (
    EarlyStopping,
    ModelCheckpoint,
)
from tests.frozen_fits import TRAIN, data, fit, frozen, generated
from tests.quiet_trainer import quiet_trainer

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.propagation import propagate
from rca_lightning.rca.prototype_contrast import BATCH, contrast_prototypes, select_cells


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generated(tmp_path_factory.mktemp("generated"))


def test_each_round_holds_the_regions_of_that_round(root, tmp_path):
    memories = []

    class Watch(L.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            memories.append(pl_module.memory.counts.clone())

    fit(root, tmp_path, frozen(), epochs=3, callbacks=[Watch()])
    assert all(int(counts[:-1].max()) <= TRAIN for counts in memories), "a region of each photograph"
    assert len(memories) == 3


def test_resumed_between_rounds_is_the_whole_run(root, tmp_path):
    whole = frozen()
    fit(root, tmp_path, whole, epochs=3, limit_val_batches=0)
    kept = ModelCheckpoint(dirpath=tmp_path / "kept", save_last=True, save_on_train_epoch_end=True)
    fit(root, tmp_path, frozen(), epochs=2, callbacks=[kept], limit_val_batches=0, enable_checkpointing=True)
    resumed = frozen()
    images, _ = fit(root, tmp_path, resumed, epochs=3, ckpt_path=tmp_path / "kept" / "last.ckpt", limit_val_batches=0)
    assert images == 0
    torch.testing.assert_close(resumed.state_dict(), whole.state_dict())
    loaded = RCAModule.load_from_checkpoint(tmp_path / "kept" / "last.ckpt")
    assert loaded.is_frozen
    assert loaded.network.pca_learned


def test_later_rounds_move_the_prototypes_by_contrast_with_cells_of_all_photographs(root, tmp_path):
    first = frozen()
    fit(root, tmp_path, first, epochs=1, limit_val_batches=0)
    reader, cells = first.network.aggregation, []
    photographs = data(root)
    photographs.setup("fit")
    cache = FeatureCacheCallback(str(tmp_path / "features"))
    photographs.keep_features(cache.open(first))
    for sample in (photographs.cached_features()[row] for row in range(TRAIN)):
        with torch.no_grad():
            maps = first.network.read([sample["features"][0].float()], sample["tags"][None])
            cam = propagate(maps.region_cam("attention"), maps.embeddings, power=2, steps=1)
        cells.append(select_cells(maps.embeddings, cam, sample["tags"][None]))
    embeddings, labels = torch.cat([own.embeddings for own in cells]), torch.cat([own.labels for own in cells])
    assert len(labels) <= BATCH, "one step, in which the order does not matter"
    expected, loss = contrast_prototypes(
        reader.prototypes[reader.valid], reader.labels[reader.valid], embeddings, labels, temperature=reader.temperature
    )
    second = frozen()
    _, trainer = fit(root, tmp_path, second, epochs=2, limit_val_batches=0)
    torch.testing.assert_close(second.network.aggregation.prototypes[reader.valid], expected, atol=5e-3, rtol=0)
    assert float(trainer.callback_metrics["prototypes/contrast_loss"]) == pytest.approx(loss, rel=0.01)
    assert not torch.equal(second.network.aggregation.valid, torch.zeros_like(reader.valid))
    without = frozen(contrast=False)
    _, trainer = fit(root, tmp_path, without, epochs=2, limit_val_batches=0)
    assert "prototypes/contrast_loss" not in trainer.callback_metrics
    assert not torch.allclose(without.network.aggregation.prototypes, second.network.aggregation.prototypes, atol=1e-3)


def test_cells_of_a_round_fit_into_a_bounded_memory(root, tmp_path, monkeypatch):
    module, counts = frozen(), []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            counts.append(len(outputs["cells"]) if "cells" in outputs else None)

    monkeypatch.setattr("rca_lightning.callbacks.region_memory._ROUND_BYTES", 2 * 16 * 4 * TRAIN * 3)
    fit(root, tmp_path, module, epochs=2, callbacks=[Watch()], limit_val_batches=0)
    assert module.cells_per_class == 3
    before, after = counts[: len(counts) // 2], counts[len(counts) // 2 :]
    assert set(before) == {None}, "the first round has no prototypes yet"
    assert 0 < max(after) <= 4 * 7 * 3  # photographs of a batch, classes, cells


class Rounds(L.Callback):
    """The share of cells that each round changes: as it is logged, and by a plain loop over all photographs."""

    def __init__(self, stop_in: tuple[int, int] | None = None) -> None:
        self.logged, self.expected, self.before, self.stop_in = [], [], {}, stop_in

    @torch.no_grad()
    def on_train_epoch_start(self, trainer, pl_module):
        network, changed, cells = pl_module.network, 0, 0
        attention = network.has_prototypes
        threshold = 0.15 if attention else 0.05
        photographs = trainer.datamodule.cached_features()
        for sample in (photographs[row] for row in range(len(photographs))):
            tagged = sample["tags"].nonzero()[:, 0].tolist()
            labels = []
            for of_scale in sample["features"]:
                maps = network.read([of_scale.float()], sample["tags"][None])
                cam = maps.region_cam("attention")
                cam = propagate(cam, maps.embeddings, power=2, steps=1) if attention else cam
                for row, column in torch.cartesian_prod(*map(torch.arange, cam.shape[2:])).tolist():
                    peaks = [float(cam[0, index].max().clamp_min(1e-5)) for index in tagged]
                    scores = [
                        float(cam[0, index, row, column]) / peak for index, peak in zip(tagged, peaks, strict=True)
                    ]
                    labels.append(tagged[scores.index(max(scores))] if max(scores) > threshold else None)
            before = self.before.get(sample["image_id"])
            changed += sum(before is None or old != new for old, new in zip(before or labels, labels, strict=True))
            cells += len(labels)
            self.before[sample["image_id"]] = labels
        self.expected.append(changed / cells)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.stop_in:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "stopped.ckpt")

    def on_train_epoch_end(self, trainer, pl_module):
        self.logged.append(float(trainer.callback_metrics["train/label_change"]))


@pytest.mark.parametrize("scales", [(1.0,), (0.5, 1.0)])
def test_share_of_labels_that_a_round_changes(root, tmp_path, scales, caplog):
    rounds = Rounds()
    with caplog.at_level(logging.INFO):
        fit(root, tmp_path, frozen(scales=scales), epochs=3, callbacks=[rounds], limit_val_batches=0)
    assert rounds.logged == pytest.approx(rounds.expected)
    assert rounds.logged[0] == 1
    assert all(0 < share < 1 for share in rounds.logged[1:])
    assert "epoch 1: 100" not in caplog.text
    assert f"epoch 2: {100 * rounds.expected[1]:.1f} % of the cells changed their label" in caplog.text


@pytest.mark.parametrize("stop_in", [(1, 2), (2, 0)])
def test_it_is_the_same_in_a_run_that_went_on(root, tmp_path, stop_in):
    whole = Rounds(stop_in)
    fit(root, tmp_path, frozen(), epochs=4, callbacks=[whole], limit_val_batches=0)
    path = tmp_path / "stopped.ckpt"
    resumed = Rounds()
    fit(root, tmp_path, frozen(), epochs=4, callbacks=[resumed], limit_val_batches=0, ckpt_path=path)
    assert len(resumed.logged) == 4 - stop_in[0]
    assert resumed.logged == whole.logged[stop_in[0] :]


def test_rounds_stop_when_labels_no_longer_change(root, tmp_path):
    rounds = Rounds()
    fit(root, tmp_path, frozen(), epochs=4, callbacks=[rounds], limit_val_batches=0)
    for threshold in rounds.logged[1:3]:
        stop = EarlyStopping("train/label_change", stopping_threshold=threshold + 1e-6, patience=9)
        _, trainer = fit(root, tmp_path, frozen(), epochs=9, callbacks=[stop], limit_val_batches=0)
        enough = next(index for index, share in enumerate(rounds.logged) if share <= threshold)
        assert trainer.current_epoch == enough + 1
    parts = [FeatureCacheCallback(str(tmp_path / "features")), EarlyStopping("train/label_change")]
    trainer = quiet_trainer(tmp_path, max_epochs=1, callbacks=parts)
    with pytest.raises(ArgumentError, match=r"EarlyStopping.monitor='train/label_change': nothing in this run logs it"):
        trainer.fit(frozen(aggregation=False), datamodule=data(root))
