"""Panels of the epochs that are due, with and without a validation."""

from __future__ import annotations

from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from tests.quiet_trainer import quiet_trainer
from tests.unit.callbacks.panel_runs import OtherRank, build, loader, names, samples, trainer
from torch.utils.data import DataLoader

from rca_lightning.callbacks.panels import PanelCallback
from rca_lightning.data.sample import collate
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.rca_module import RCAModule


@pytest.mark.parametrize(
    ("every", "validate_every", "expected"),
    [(2, 1, [1]), (1, 2, [0, 1, 2]), (2, 3, [1]), (3, 100, [2]), (4, 1, [])],
)
def test_a_panel_every_so_many_epochs_whether_validated_or_not(tmp_path, drawn, every, validate_every, expected):
    run = trainer(
        PanelCallback(images=1, every_n_epochs=every), tmp_path, max_epochs=3, num_sanity_val_steps=0,
        limit_train_batches=1, check_val_every_n_epoch=validate_every,
    )  # fmt: skip
    run.fit(build(lr=1e-4), loader(samples(2)), loader(samples(2)))
    assert names(tmp_path) == [f"epoch-{epoch:03d}.png" for epoch in expected]
    assert len(drawn) == len(expected)


class Photographs(L.LightningDataModule):
    """Counts how often its validation images are asked for."""

    def __init__(self, *, masks: bool = True) -> None:
        super().__init__()
        self.masks = masks
        self.asked = 0

    def train_dataloader(self) -> DataLoader:
        return loader(samples(4))

    def val_dataloader(self) -> DataLoader:
        self.asked += 1
        return loader(samples(5, masks=self.masks))


def test_without_validation_the_same_rows_are_drawn_as_with(tmp_path, drawn):
    for validate_every in (1, 100):
        run = trainer(
            PanelCallback(images=3), tmp_path, max_epochs=2, num_sanity_val_steps=0,
            check_val_every_n_epoch=validate_every,
        )  # fmt: skip
        run.fit(build(lr=1e-2, frozen_batchnorm=False), datamodule=Photographs())
    validated, alone = drawn[:2], drawn[2:]
    assert [len(rows) for rows, _ in drawn] == [3, 3, 3, 3]
    for (first, _), (second, _) in zip(validated, alone, strict=True):
        for left, right in zip(first, second, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))
    # The pictures follow the weights.
    assert not np.array_equal(alone[0][0][0][2], alone[1][0][0][2])


def test_images_are_read_once_in_a_run(tmp_path, drawn):
    callback = PanelCallback(images=2)
    for data in (Photographs(masks=False), Photographs()):
        run = trainer(callback, tmp_path, max_epochs=2, num_sanity_val_steps=0, check_val_every_n_epoch=100)
        run.fit(build(lr=1e-4), datamodule=data)
        assert data.asked == 1
    plain = [all(np.array_equal(row[0], row[3]) for row in rows) for rows, _ in drawn]
    assert plain == [True, True, False, False]


class Dropping(RCAModule):
    """Draws from the generator in every step, and holds a part that does not train."""

    def on_train_start(self) -> None:
        next(part for part in self.modules() if isinstance(part, torch.nn.BatchNorm2d)).eval()

    def training_step(self, batch, batch_idx):
        self.drawn = [*getattr(self, "drawn", []), float(torch.rand(()))]
        self.modes = [part.training for part in self.modules()]
        return super().training_step(batch, batch_idx)


def test_training_takes_the_same_course_with_and_without_panels(tmp_path):
    seen = []
    for callbacks in ([], [PanelCallback(images=2)]):
        torch.manual_seed(0)
        module = Dropping(
            num_classes=2, backbone="resnet14", contrast=False, aggregation=False, final_map="coarse", lr=1e-2,
            frozen_batchnorm=False, flip=False,
        )  # fmt: skip
        run = quiet_trainer(
            tmp_path, callbacks=callbacks, max_epochs=3, num_sanity_val_steps=0, check_val_every_n_epoch=100
        )
        shuffled = DataLoader(samples(4), batch_size=2, shuffle=True, collate_fn=collate)
        torch.manual_seed(1)
        run.fit(module, shuffled, loader(samples(2)))
        seen.append((module.drawn, module.modes, module.state_dict()))
    (numbers, modes, weights), (others, after, same) = seen
    assert numbers == others
    assert modes == after
    assert True in modes
    assert False in modes
    assert all(torch.equal(weights[name], same[name]) for name in weights)


@pytest.mark.parametrize("limit", [0, 1.0])
def test_a_run_without_validation_images_says_so_once(tmp_path, drawn, caplog, limit):
    run = trainer(PanelCallback(), tmp_path, max_epochs=2, num_sanity_val_steps=0, limit_val_batches=limit)
    run.fit(build(lr=1e-4), loader(samples(2)), loader(samples(2)) if limit == 0 else None)
    assert drawn == []
    assert [record.message for record in caplog.records if "PanelCallback" in record.message] == [
        "PanelCallback has nothing to draw: this run has no validation images"
    ]


def test_a_panel_of_validate_whatever_the_interval(tmp_path):
    trainer(PanelCallback(images=1, every_n_epochs=7), tmp_path).validate(build(), loader(samples(1)), verbose=False)
    assert names(tmp_path) == ["validate.png"]


class NeverRead:
    """A loader that only the first rank may read."""

    def __iter__(self):
        raise AssertionError("read on another rank")


def test_at_the_end_of_an_epoch_other_ranks_ask_for_all_that_is_shared_and_draw_nothing(monkeypatch, drawn):
    asked = []

    class Data:
        def val_dataloader(self):
            asked.append("loader")
            return NeverRead()

    class Training(OtherRank):
        enable_validation = True
        datamodule = Data()
        state = SimpleNamespace(fn="fit")
        current_epoch = 0

    monkeypatch.setattr(rank_zero_only, "rank", 1)
    callback, other, module = PanelCallback(), Training(), build()
    for epoch in (1, 2):
        callback.on_train_epoch_start(other, module)
        callback.on_train_epoch_end(other, module)
        assert other.asked == epoch
    assert asked == ["loader"]
    callback.on_train_epoch_start(other, module)
    callback.on_validation_epoch_start(other, module)
    callback.on_validation_epoch_end(other, module)
    callback.on_train_epoch_end(other, module)
    assert other.asked == 3
    assert drawn == []


def test_at_least_one_epoch():
    with pytest.raises(ArgumentError, match="every_n_epochs=0"):
        PanelCallback(every_n_epochs=0)
