"""Between two epochs training goes on with any number of batches an epoch."""

from __future__ import annotations

from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from tests.quiet_trainer import quiet_trainer
from tests.unit.modules.test_finite_steps import sample
from tests.unit.modules.test_resumed_arguments import segmenter
from torch.utils.data import DataLoader


class Notes(L.Callback):
    """Epochs of the training batches and of the validations."""

    def __init__(self) -> None:
        self.batches: list[int] = []
        self.validations: list[int] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(trainer.current_epoch)

    def on_validation_start(self, trainer, pl_module):
        if not trainer.sanity_checking:
            self.validations.append(trainer.current_epoch)


def fit(folder: Path, batches: int, epochs: int, *more: L.Callback, validates: bool, path: Path | None = None) -> Notes:
    notes = Notes()
    trainer = quiet_trainer(
        folder,
        max_epochs=epochs,
        enable_checkpointing=True,
        callbacks=[notes, *more],
        limit_val_batches=1 if validates else 0,
    )
    loaders = [DataLoader([sample(number) for number in range(count)], batch_size=None) for count in (batches, 1)]
    trainer.fit(segmenter(), *loaders, ckpt_path=path)
    if path is None:
        trainer.save_checkpoint(folder / "when all is done.ckpt")
    return notes


SAVINGS = {
    "before validation": {"save_on_train_epoch_end": False, "every_n_train_steps": 4},
    "after validation": {"save_on_train_epoch_end": False, "every_n_epochs": 1},
    "at the end of the epoch": {"save_on_train_epoch_end": True, "every_n_epochs": 1},
    "when all is done": None,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("batches", [3, 4, 8])
@pytest.mark.parametrize("saving", SAVINGS)
@pytest.mark.parametrize("validates", [True, False])
def test_epochs_that_follow_are_whole(tmp_path: Path, batches: int, saving: str, validates: bool):
    options = SAVINGS[saving]
    if not validates and saving == "after validation":
        pytest.skip("there is none")
    saves = ModelCheckpoint(tmp_path, filename=saving, save_top_k=-1, enable_version_counter=False, **(options or {}))
    fit(tmp_path, 4, 1, *([saves] if options else []), validates=validates)
    notes = fit(tmp_path, batches, 3, validates=validates, path=tmp_path / f"{saving}.ckpt")
    assert notes.batches == [1] * batches + [2] * batches
    left = [0, 1, 2] if saving == "before validation" else [1, 2]
    assert notes.validations == (left if validates else [])
