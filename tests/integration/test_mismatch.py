"""Checkpoints of other classes, K, N or D: refused with both values, or taken without their memory."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import yaml

from rca_lightning.errors import WeightsError
from tests.integration.running import run


@pytest.fixture
def small(config: Path) -> Path:
    content = yaml.safe_load(config.read_text())
    content["model"] |= {"backbone": "resnet14", "embedding_stages": 1}
    content["trainer"] |= {"max_epochs": 1, "limit_val_batches": 1}
    content["data"] |= {"batch_size": 6, "crop_size": 32}
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.fixture
def checkpoint(small: Path, tmp_path: Path) -> Path:
    run("fit", small)
    # Trainings that go on from it replace the original.
    return Path(shutil.copy(tmp_path / "run" / "last.ckpt", tmp_path / "before.ckpt"))


def renamed(config: Path, tmp_path: Path) -> str:
    names = Path(yaml.safe_load(config.read_text())["data"]["class_file"]).read_text().split()
    path = tmp_path / "renamed.txt"
    path.write_text("\n".join([names[0], f"{names[1]}s", *names[2:]]))
    tags = Path(yaml.safe_load(config.read_text())["data"]["root"]) / "image_labels.txt"
    (tmp_path / "tags.txt").write_text(tags.read_text().replace(names[1], f"{names[1]}s"))
    return str(path)


def test_each_is_refused_with_both_values_or_rebuilt(small: Path, checkpoint: Path, tmp_path: Path):
    names = ["--data.class_file", renamed(small, tmp_path), "--data.tags_file", str(tmp_path / "tags.txt")]
    cases = {
        "K": (["--model.num_prototypes", "2"], "num_prototypes 3 in the checkpoint, 2 in this run"),
        "background": (
            ["--model.background_prototypes", "2"],
            "background_prototypes 4 in the checkpoint, 2 in this run",
        ),
        "N": (["--memory.slots", "5"], "slots 16 in the checkpoint, 5 in this run"),
        "names": (names, r"class 2 '\w+' in the checkpoint, '\w+s' in this run"),
    }
    go_on = ["--ckpt_path", checkpoint, "--trainer.max_epochs", "2"]
    for case, (words, message) in cases.items():
        with pytest.raises(WeightsError, match=message) as caught:
            run("fit", small, *go_on, *words)
        assert "on_mismatch rebuild" in str(caught.value), case

    before = torch.load(checkpoint, weights_only=True)
    assert before["state_dict"]["network.aggregation.valid"].any()
    seen = {"class_path": "tests.integration.stopping.NotesMemory"}
    content = yaml.safe_load(small.read_text())
    content["trainer"]["callbacks"].append(seen)
    small.write_text(yaml.safe_dump(content))
    for case, (words, _) in cases.items():
        cli = run("fit", small, *go_on, *words, "--memory.on_mismatch", "rebuild")
        notes = next(one for one in cli.trainer.callbacks if type(one).__name__ == "NotesMemory")
        assert notes.at_start == (0, 0, 4), case  # no region, no prototype, and the steps trained before
        assert cli.model.memory.counts.sum() > 0
        assert cli.model.network.aggregation.valid.any()
        assert cli.trainer.global_step == 8
        shape = (len(cli.model.class_names) + 1, 5 if case == "N" else 16)
        assert cli.model.memory.embeddings.shape[:2] == shape


def test_evaluation_refuses_other_prototypes_and_needs_no_memory(small: Path, checkpoint: Path):
    with pytest.raises(WeightsError, match="num_prototypes 3 in the checkpoint, 2 in this run"):
        run("validate", small, "--ckpt_path", checkpoint, "--model.num_prototypes", "2")
    with pytest.raises(WeightsError, match="num_prototypes 3 in the checkpoint, 2 in this run"):
        run("predict", small, "--ckpt_path", checkpoint, "--model.num_prototypes=2", "--memory.on_mismatch=rebuild")
    cli = run("validate", small, "--ckpt_path", checkpoint, "--memory.slots", "5")
    assert cli.model.network.aggregation.valid.any()


def test_channels_of_other_weights_are_refused(small: Path, checkpoint: Path):
    for more in ([], ["--memory.on_mismatch", "rebuild"]):
        with pytest.raises(WeightsError, match=r"channels of the prototypes \d+ in|of another network"):
            run("fit", small, "--ckpt_path", checkpoint, "--model.embedding_dim", "8", *more)
