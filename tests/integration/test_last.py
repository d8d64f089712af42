"""`--ckpt_path`: `last` is the newest state of all runs; what cannot be found or resumed is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rca_lightning.callbacks.signals import EXIT_CODE, SaveOnSignal
from rca_lightning.errors import ArgumentError, OutputError, WeightsError
from tests.integration.running import run

SAVES = "lightning.pytorch.callbacks.ModelCheckpoint"


@pytest.fixture
def small(config: Path) -> Path:
    """A configuration with a logger, whose checkpoints are named by a score."""
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"backbone": "resnet14"}
    content["data"] |= {"crop_size": 32}
    content["trainer"] |= {"logger": {"class_path": "lightning.pytorch.loggers.CSVLogger"}, "max_epochs": 3}
    content["trainer"]["logger"]["init_args"] = {"save_dir": content["trainer"]["default_root_dir"]}
    content["trainer"]["limit_val_batches"] = 1
    filename = "{epoch}-{val/miou_true_tags:.2f}"
    content["trainer"]["callbacks"] = [{"class_path": SAVES, "init_args": {"filename": filename}}]
    config.write_text(yaml.safe_dump(content))
    return config


def test_run_that_was_preempted_resumed_and_finished(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    begin = SaveOnSignal.on_train_batch_end

    def signalled(self: SaveOnSignal, trainer: Any, *args: Any) -> None:
        self.received = 10 if trainer.global_step == 2 else None
        begin(self, trainer, *args)

    monkeypatch.setattr(SaveOnSignal, "on_train_batch_end", signalled)
    with pytest.raises(SystemExit) as stopped:
        run("fit", small)
    assert stopped.value.code == EXIT_CODE
    monkeypatch.undo()
    logs = tmp_path / "run" / "lightning_logs"
    preempted = logs / "version_0" / "checkpoints" / "last.ckpt"
    with caplog.at_level("INFO", "rca_lightning"):
        cli = run("fit", small, "--ckpt_path", "last")
    assert cli.trainer.ckpt_path == str(preempted)
    assert f"--ckpt_path last: {preempted} (epoch 0, step 2)" in caplog.text
    (finished,) = (logs / "version_1" / "checkpoints").rglob("*.ckpt")
    assert torch.load(finished, weights_only=True)["global_step"] == 9
    for command in ("validate", "test", "predict"):
        assert run(command, small, "--ckpt_path", "last").trainer.ckpt_path == str(finished)
    assert f"--ckpt_path last: {finished} (epoch 2, step 9)" in caplog.text
    assert run("fit", small, "--ckpt_path", "last", "--trainer.max_epochs", 4).trainer.global_step == 12


def test_typed_rate_acts_and_is_recorded(config: Path, checkpoint: Path, tmp_path: Path):
    more = ("--trainer.max_epochs", 3, "--trainer.limit_val_batches", 0, "--ckpt_path", checkpoint)
    cli = run("fit", config, *more, "--model.lr", 0.003, "--model.weight_decay", 0.2)
    (schedule,) = (configured.scheduler for configured in cli.trainer.lr_scheduler_configs)
    assert schedule.base_lrs == [0.003, 0.003]
    assert [group["weight_decay"] for group in cli.trainer.optimizers[0].param_groups] == [0.2, 0.2]
    recorded = torch.load(tmp_path / "run" / "last-v1.ckpt", weights_only=True)["hyper_parameters"]
    assert (recorded["lr"], recorded["weight_decay"]) == (0.003, 0.2)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ckpt_path", "best"], "^ckpt_path='best': only the process that trained knows it; give its path, or last$"),
        (["--ckpt_path", "hpc"], "^ckpt_path='hpc': Lightning has saved none"),
        (["--ckpt_path="], "^ckpt_path='': give the path of a checkpoint, last, or null$"),
        (["--ckpt_path", "{folder}"], "^ckpt_path='.*': this is a folder; give a checkpoint in it$"),
    ],
)
@pytest.mark.parametrize("command", ["fit", "validate", "predict"])
def test_what_is_no_checkpoint_is_one_line(config: Path, tmp_path: Path, command: str, words: list, message: str):
    with pytest.raises(ArgumentError, match=message):
        run(command, config, *(word.format(folder=tmp_path) for word in words))


def test_another_optimizer_and_weights_alone(config: Path, checkpoint: Path, tmp_path: Path):
    more = ("--trainer.max_epochs", 3, "--trainer.limit_val_batches", 0)
    with pytest.raises(ArgumentError, match=r"^optimizer='adamw': the checkpoint holds the state of 'sgd'"):
        run("fit", config, *more, "--ckpt_path", checkpoint, "--model.optimizer", "adamw")
    content = torch.load(checkpoint, weights_only=True)
    for name in ("optimizer_states", "lr_schedulers", "callbacks"):
        del content[name]
    checkpoint.unlink()
    torch.save(content, checkpoint)
    for path in ("last", checkpoint):
        with pytest.raises(WeightsError, match=r"last\.ckpt.* holds weights alone"):
            run("fit", config, *more, "--ckpt_path", path)
    assert run("validate", config, "--ckpt_path", "last").trainer.ckpt_path == str(checkpoint)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_folders_that_take_no_files_are_named_first(config: Path, checkpoint: Path, tmp_path: Path, command: str):
    (tmp_path / "file").touch()
    words = ("--ckpt_path", checkpoint)
    with pytest.raises(OutputError, match=r"^trainer\.default_root_dir='.*file/run' cannot be written to \("):
        run(command, config, *words, "--trainer.default_root_dir", tmp_path / "file" / "run")
    content = yaml.safe_load(config.read_text())
    log = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path / "file" / "a")}}
    content["trainer"]["logger"] = log
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(OutputError, match=r"^trainer\.logger\.save_dir='.*file/a' cannot be written to \("):
        run(command, config, *words)


def test_folder_of_checkpoints_that_takes_no_files(config: Path, tmp_path: Path):
    (tmp_path / "file").touch()
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(tmp_path / "file" / "a")
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(OutputError, match=r"^ModelCheckpoint\.dirpath='.*file/a' cannot be written to \("):
        run("fit", config)


def test_checkpoint_of_an_older_format(config: Path, checkpoint: Path):
    content = torch.load(checkpoint, weights_only=True)
    for name in ("rca_lightning_format", "rca_lightning_saved_at", "WSSSDataModule"):
        del content[name]
    content["hyper_parameters"]["context"] = "prototypes"
    valid = content["state_dict"]["network.aggregation.valid"]
    content["state_dict"]["network.aggregation.factors"] = torch.ones(len(valid))
    checkpoint.unlink()
    torch.save(content, checkpoint)
    cli = run("validate", config, "--ckpt_path", checkpoint, "--model.tag_threshold", 0.25)
    assert cli.model.hparams["tag_threshold"] == 0.25
    more = ("--trainer.max_epochs", 3, "--trainer.limit_val_batches", 0)
    assert run("fit", config, "--ckpt_path", checkpoint, *more).trainer.global_step == 9
