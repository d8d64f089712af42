"""`rca fit | validate | predict` as a user runs them."""

from __future__ import annotations

import inspect
import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rca_lightning import RCAModule, RegionMemoryCallback
from rca_lightning.cli.main import main
from rca_lightning.errors import OutputError, RCAError
from tests.integration.running import run


class Trap:
    """Unpickled carelessly, it creates a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return Path.touch, (self.target,)


def test_fit_validate_predict(config: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    saved = torch.load(checkpoint, weights_only=True)
    memory = saved["callbacks"]["RegionMemoryCallback"]["memory"]
    assert int(memory["counts"].sum()) > 0
    assert saved["state_dict"]["network.aggregation.valid"].any()

    run("validate", config, "--ckpt_path", checkpoint)
    printed = capsys.readouterr().out
    assert "IoU" in printed
    assert "validate.json" in printed
    result = json.loads((tmp_path / "run" / "validate.json").read_text())
    assert {"split", "images", "tags", "threshold", "miou", "curve", "per_class_iou", "classification_map"} <= set(
        result
    )
    assert "without_network" not in result  # nothing says here that these files were generated
    assert (result["split"], result["images"], result["tags"]) == ("val", 6, "image")
    default = 0.7  # of the attention: no mask has a part in it
    assert (result["threshold"], result["protocol"]["threshold"]) == (default, "default")
    assert result["miou"] == result["curve"][f"{default:g}"]
    assert result["oracle_miou"] == max(result["curve"].values())
    iou = [value for value in result["per_class_iou"].values() if value is not None]
    assert result["miou"] == pytest.approx(sum(iou) / len(iou))

    run("validate", config, "--ckpt_path", checkpoint, "--data.eval_split", "train", "--model.eval_tags", "predicted",
        "--model.seed_threshold", 0.33)  # fmt: skip
    result = json.loads((tmp_path / "run" / "validate.json").read_text())
    assert (result["split"], result["images"], result["tags"]) == ("train", 24, "predicted")
    assert (result["threshold"], result["protocol"]["threshold"]) == (0.33, "given")

    run("predict", config, "--ckpt_path", checkpoint)
    folder = tmp_path / "run" / "predictions"
    labels = sorted((folder / "pseudo_labels").glob("*.png"))
    assert len(labels) == 6
    picture = Image.open(labels[0])
    assert (picture.mode, picture.size) == ("P", (64, 64))
    stored = np.load(folder / "cams" / f"{labels[0].stem}.npz", allow_pickle=False)
    assert stored["maps"].dtype == np.float16
    assert stored["maps"].shape == (len(stored["classes"]), 64, 64)


def test_predict_continues_and_refuses_other_settings(config: Path, checkpoint: Path, tmp_path: Path):
    run("predict", config, "--ckpt_path", checkpoint)
    labels = sorted((tmp_path / "run" / "predictions" / "pseudo_labels").glob("*.png"))
    kept, lost = labels[0], labels[-1]
    before = kept.stat().st_mtime_ns
    lost.unlink()
    cli = run("predict", config, "--ckpt_path", checkpoint)
    assert lost.is_file()
    assert kept.stat().st_mtime_ns == before
    assert len(cli.datamodule.predict_dataloader().dataset) == 1  # only the missing one was computed
    run("predict", config, "--ckpt_path", checkpoint)  # nothing left to do
    with pytest.raises(OutputError, match="flip"):
        run("predict", config, "--ckpt_path", checkpoint, "--model.flip", "true")


def test_checkpoint_alone_gives_the_same_maps(config: Path, checkpoint: Path, tmp_path: Path, synthetic_root: Path):
    cli = run("predict", config, "--ckpt_path", checkpoint)
    module = RCAModule.load_from_checkpoint(checkpoint, map_location="cpu").eval()
    assert module.class_names == cli.datamodule.class_names
    batch = next(iter(cli.datamodule.predict_dataloader()))
    seeds = module.seeds(batch["image"], batch["tags"])[0]
    stored = np.load(tmp_path / "run" / "predictions" / "cams" / f"{batch['image_id'][0]}.npz", allow_pickle=False)
    assert seeds.classes.tolist() == stored["classes"].tolist()
    np.testing.assert_array_equal(seeds.maps.numpy().astype(np.float16), stored["maps"])


def test_plain_cam_has_no_memory_and_no_second_head(config: Path):
    plain = ("--model.contrast", "false", "--model.aggregation", "false")
    cli = run("fit", config, *plain, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 1)
    names = {name.split(".")[0] for name, _ in cli.model.network.named_parameters()}
    assert names == {"backbone", "coarse_head"}
    assert cli.model.memory is None


def test_memory_has_arguments_of_its_own(config: Path):
    cli = run("fit", config, "--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0, "--memory.slots", 7)
    assert cli.model.memory.slots == 7
    assert int(cli.model.memory.counts.sum()) > 0


def test_every_argument_of_the_memory_is_explained(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["fit", "--help"])
    details = capsys.readouterr().out.split("  --memory CONFIG")[1]
    for name in inspect.signature(RegionMemoryCallback).parameters:
        explained = re.search(rf"\n  --memory\.{name} \S+\s+(.+?)\(type: ", details, flags=re.DOTALL)
        assert explained, name
        assert len(explained[1].split()) >= 3, explained[1]
    assert re.search(r"--memory\.clustering.*?default:\s+kmeans\)", details, flags=re.DOTALL)


def test_last_checkpoint_is_read_without_running_code(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")  # what is not asked for explicitly unpickles anything
    (tmp_path / "run").mkdir()
    torch.save({"state_dict": {}, "trap": Trap(tmp_path / "ran")}, tmp_path / "run" / "last.ckpt")
    with pytest.raises(RCAError, match=r"last\.ckpt' was not loaded: damaged, or more than tensors in it"):
        run("fit", config, "--ckpt_path", "last")
    assert not (tmp_path / "ran").exists()
    with pytest.raises(RCAError, match="weights_only=False: leave it out"):
        run("fit", config, "--ckpt_path", "last", "--weights_only", "false")
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "run" / "last.ckpt", weights_only=False)
    assert (tmp_path / "ran").exists()  # so there was code to run


def test_missing_faiss_is_told_before_training(config: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(RCAError, match="pip install"):
        run("fit", config, "--memory.backend", "faiss")


def test_second_memory_is_refused(config: Path):
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"].append({"class_path": "rca_lightning.RegionMemoryCallback"})
    config.write_text(yaml.safe_dump(content))
    with pytest.raises(RCAError, match="memory:"):
        run("fit", config)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.root", "/no/such/folder"], "/no/such/folder"),
        (["--model.backbone", "resnet99"], "resnet99"),
        (["--model.weights", "/no/such/weights.pth"], "/no/such/weights.pth"),
        (["--model.region_threshold", "1.5"], "region_threshold"),
        (["--ckpt_path", "https://example.org/last.ckpt"], "ckpt_path=.*fetch the file"),
    ],
)
def test_wrong_arguments_are_named(config: Path, arguments: list[str], message: str):
    with pytest.raises(RCAError, match=message):
        run("fit", config, *arguments)


def test_console_prints_one_line(config: Path, monkeypatch: pytest.MonkeyPatch):
    from rca_lightning.cli.main import console

    monkeypatch.setattr("sys.argv", ["rca", "fit", "--config", str(config), "--model.backbone", "resnet99"])
    with pytest.raises(SystemExit) as stopped:
        console()
    assert str(stopped.value).startswith("rca: backbone='resnet99'")


@pytest.mark.parametrize(
    "option",
    [
        ["--trainer.precision", "bf16-mixed", "--model.channels_last", "true"],
        ["--trainer.accumulate_grad_batches", "2"],
        ["--model.embedding_dim", "16", "--model.attention_classes", "tags", "--model.final_map", "attention"],
    ],
)
def test_trainer_options(config: Path, option: list[str]):
    few = ("--trainer.limit_train_batches", 2, "--trainer.limit_val_batches", 1, "--data.batch_size", 2)
    cli = run("fit", config, *option, *few, "--model.backbone", "resnet14")  # bfloat16 is slow without units for it
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
