"""Progress lines of a real run."""

from __future__ import annotations

import logging

import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from tests.quiet_trainer import quiet_trainer

from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.errors import ArgumentError


class Logged(BoringModel):
    def training_step(self, batch, batch_idx):
        step = super().training_step(batch, batch_idx)
        self.log("train/loss", torch.tensor(0.25))
        return step


def trainer(tmp_path, seconds: float) -> L.Trainer:
    return quiet_trainer(
        tmp_path, max_epochs=2, limit_train_batches=2, limit_val_batches=3, limit_predict_batches=2,
        num_sanity_val_steps=0, callbacks=[ProgressLines(seconds)],
    )  # fmt: skip


def own_lines(caplog) -> list[str]:
    return [record.message for record in caplog.records if record.name.startswith("rca_lightning")]


def test_lines_name_epoch_batch_and_loss(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="rca_lightning")
    model = Logged()
    run = trainer(tmp_path, seconds=0)
    run.fit(model)
    run.predict(model, torch.utils.data.DataLoader(torch.randn(4, 32), batch_size=1), return_predictions=False)
    lines = own_lines(caplog)
    assert lines[1] == "fit: epoch 1 of 2, batch 2 of 2, loss 0.250"
    assert lines[2:5] == [f"validate: batch {number} of 3" for number in (1, 2, 3)]
    assert lines[5].startswith("fit: epoch 2 of 2, batch 1 of 2")
    assert lines[-1] == "predict: batch 2 of 2"


def test_lines_are_rare(tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="rca_lightning")
    trainer(tmp_path, seconds=1000).fit(Logged())
    assert own_lines(caplog) == []


def test_negative_seconds_are_refused():
    with pytest.raises(ArgumentError, match="seconds"):
        ProgressLines(-1)
