"""A run that is stopped and resumed ends as if it had not been."""

from __future__ import annotations

from pathlib import Path

import torch
import yaml

from rca_lightning.cli.main import main
from tests.integration.endings import differences
from tests.integration.running import fit


def test_resume_equals_uninterrupted(config: Path, tmp_path: Path):
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"backbone": "resnet14"}
    content["data"] |= {"crop_size": 32}
    config.write_text(yaml.safe_dump(content))
    whole = fit(config, "whole", "--trainer.max_epochs", 4)
    stopped = fit(config, "stopped", "--trainer.max_epochs", 4, stop_after=2)
    assert stopped.trainer.current_epoch == 2
    last = tmp_path / "stopped" / "last.ckpt"
    saved = torch.load(last, weights_only=True)["callbacks"]["RegionMemoryCallback"]["memory"]
    for name in ("embeddings", "counts", "cursors", "steps", "ids"):
        assert torch.equal(saved[name], getattr(stopped.model.memory, name))

    resumed = fit(config, "resumed", "--trainer.max_epochs", 4, "--ckpt_path", last)
    assert resumed.trainer.global_step == whole.trainer.global_step
    for (name, expected), (_, found) in zip(
        whole.model.state_dict().items(), resumed.model.state_dict().items(), strict=True
    ):
        assert torch.equal(expected, found), name
    for name, value in whole.model.memory.state_dict().items():
        found = resumed.model.memory.state_dict()[name]
        assert torch.equal(value, found) if isinstance(value, torch.Tensor) else value == found, name
    expected, found = (cli.trainer.optimizers[0].state_dict() for cli in (whole, resumed))
    assert expected["param_groups"] == found["param_groups"]
    for key, state in expected["state"].items():
        assert torch.equal(state["momentum_buffer"], found["state"][key]["momentum_buffer"])


def test_segmenter_with_dropout_goes_on_within_an_epoch(config: Path, tmp_path: Path):
    content = yaml.safe_load(config.read_text())
    del content["memory"]
    model = {"backbone": "resnet14", "head": "deeplabv3plus", "frozen_batchnorm": False, "lr": 0.01}
    content |= {"task": "segment", "model": model}
    content["trainer"] |= {"limit_val_batches": 0}
    # Loading processes work ahead: they must not begin with another epoch or batch.
    content["data"] |= {"batch_size": 6, "crop_size": 32, "num_workers": 1}

    def trained(folder: str, *more: str) -> dict:
        options = {"dirpath": str(tmp_path / folder), "save_last": True, "every_n_train_steps": 2, "save_top_k": -1}
        content["trainer"]["callbacks"][0]["init_args"] = options
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(content))
        main(["fit", "--config", str(path), *more])
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)

    whole = trained("whole")
    for name in ("epoch=0-step=2.ckpt", "epoch=1-step=6.ckpt"):
        resumed = trained(f"from {name}", "--ckpt_path", str(tmp_path / "whole" / name))
        assert differences(whole["state_dict"], resumed["state_dict"]) == []
        assert differences(whole["optimizer_states"], resumed["optimizer_states"]) == []
    assert differences(whole["state_dict"], torch.load(tmp_path / "whole" / name)["state_dict"]), "it has gone on"
