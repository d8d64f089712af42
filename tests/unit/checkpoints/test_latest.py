"""The latest checkpoint of earlier runs is found, whatever its name and folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.loggers import CSVLogger
from tests.quiet_trainer import quiet_trainer

from rca_lightning.checkpoints.latest import find_last
from rca_lightning.errors import DamagedError, WeightsError

WEIGHTS = {"state_dict": {}, "pytorch-lightning_version": "2.6", "epoch": 3, "global_step": 16}
PLAIN = {**WEIGHTS, "optimizer_states": [], "lr_schedulers": []}


def saved(path: Path, age: int, content: dict | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(PLAIN if content is None else content, path)
    os.utime(path, (1_000_000 - age, 1_000_000 - age))
    return path


def trainer(folder: Path, *, filename: str | None = None, dirpath: Path | None = None, **options: object) -> L.Trainer:
    callback = ModelCheckpoint(dirpath=dirpath, filename=filename, save_last=True)
    return quiet_trainer(folder, enable_checkpointing=True, callbacks=[callback], **options)


def test_saved_last_comes_first_whatever_its_name(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    folder = tmp_path / "checkpoints"
    assert find_last(trainer(tmp_path)) is None
    preempted = saved(folder / "last.ckpt", 20)
    assert find_last(trainer(tmp_path)) == preempted
    finished = saved(folder / "epoch=3-step=16.ckpt", 0)
    (folder / ".epoch.abcdefgh.part").write_bytes(finished.read_bytes()[:100])
    shutil.copy(finished, folder / ".lr_find_0.ckpt")  # what a killed search has left
    with caplog.at_level("INFO", "rca_lightning"):
        assert find_last(trainer(tmp_path)) == finished
    assert f"--ckpt_path last: {finished} (epoch 3, step 16)" in caplog.text
    finished.write_bytes(finished.read_bytes()[:-30])
    assert find_last(trainer(tmp_path)) == preempted
    assert "was not loaded: damaged" in caplog.text
    requeued = saved(tmp_path / "hpc_ckpt_2.ckpt", 5)
    assert find_last(trainer(tmp_path)) == requeued
    assert find_last(trainer(tmp_path, dirpath=tmp_path / "elsewhere")) == requeued


def test_two_names_of_one_file_are_told_by_last(tmp_path: Path):
    path = saved(tmp_path / "checkpoints" / "epoch=3.ckpt", 0)
    link = path.with_name("last.ckpt")
    link.symlink_to(path.name)
    assert find_last(trainer(tmp_path)) == link


def test_copies_keep_the_order_in_which_they_were_saved(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    saved(folder / "epoch=1.ckpt", 0, {**PLAIN, "rca_lightning_saved_at": 100.0})
    later = saved(folder / "epoch=2.ckpt", 50, {**PLAIN, "rca_lightning_saved_at": 200.0})
    assert find_last(trainer(tmp_path)) == later


def test_newest_run_of_a_logger_comes_first(tmp_path: Path):
    saved(tmp_path / "logs" / "version_0" / "checkpoints" / "last.ckpt", 20)
    resumed = saved(tmp_path / "logs" / "version_1" / "checkpoints" / "epoch=3-step=16.ckpt", 10)
    assert find_last(trainer(tmp_path, logger=CSVLogger(tmp_path, name="logs"))) == resumed


@pytest.mark.parametrize(("name", "version"), [("logs", "lr/0.1"), ("", "lr/0.1"), ("a/b", None), (None, 3), ("", 0)])
def test_versions_and_names_in_subfolders(tmp_path: Path, name: str | None, version: object):
    log = CSVLogger(tmp_path, name=name, version=version)
    callback = ModelCheckpoint()
    run = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[callback], logger=log)
    folder = Path(callback._ModelCheckpoint__resolve_ckpt_dir(run))  # where Lightning would save
    saved(tmp_path / "other" / "version_0" / "last" / "checkpoints" / "last.ckpt", 0)  # of another logger
    path = saved(folder / "epoch=1.ckpt", 20)
    assert find_last(run) == path


def test_metric_with_a_slash_in_the_name_of_the_file(tmp_path: Path):
    name = "{epoch}-{val/miou_true_tags:.2f}"
    path = saved(tmp_path / "run" / "epoch=1-val" / "miou_true_tags=0.47.ckpt", 10)
    saved(tmp_path / "run" / "another" / "run" / "in" / "it" / "last.ckpt", 0)
    assert find_last(trainer(tmp_path, filename=name, dirpath=tmp_path / "run")) == path
    (tmp_path / "checkpoints").mkdir()
    shutil.move(tmp_path / "run" / "epoch=1-val", tmp_path / "checkpoints")
    assert find_last(trainer(tmp_path)) == tmp_path / "checkpoints" / path.relative_to(tmp_path / "run")


def test_what_an_exception_has_left(tmp_path: Path):
    run = quiet_trainer(tmp_path, enable_checkpointing=True, callbacks=[OnExceptionCheckpoint(tmp_path / "broken")])
    path = saved(tmp_path / "broken" / "on_exception.ckpt", 0)
    saved(tmp_path / "checkpoints" / "last.ckpt", 10)
    assert find_last(run) == path


def test_training_goes_on_from_no_weights_alone(tmp_path: Path):
    folder = tmp_path / "checkpoints"
    weights = saved(folder / "weights.ckpt", 0, WEIGHTS)
    assert find_last(trainer(tmp_path)) == weights
    with pytest.raises(WeightsError, match=r"weights\.ckpt\) holds weights alone.*save_weights_only=False"):
        find_last(trainer(tmp_path), to_train=True)
    whole = saved(folder / "last.ckpt", 10)
    assert find_last(trainer(tmp_path), to_train=True) == whole


def test_only_broken_ones_are_an_error_and_not_a_new_start(tmp_path: Path):
    path = saved(tmp_path / "checkpoints" / "last.ckpt", 0)
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DamagedError, match=r"last\.ckpt' was not loaded: damaged"):
        find_last(trainer(tmp_path))


def test_a_later_format_is_not_passed_over(tmp_path: Path):
    saved(tmp_path / "checkpoints" / "last.ckpt", 0, {**PLAIN, "rca_lightning_format": 99})
    saved(tmp_path / "checkpoints" / "epoch=1.ckpt", 9)
    with pytest.raises(WeightsError, match="has format 99"):
        find_last(trainer(tmp_path))
