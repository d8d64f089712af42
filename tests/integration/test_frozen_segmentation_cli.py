"""`--task segment_frozen` as a user runs it: localization, boundaries, a classifier of pixels, masks."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rca_lightning.cli.main import console, main
from rca_lightning.errors import ArgumentError, OutputError, WeightsError
from tests.integration.conftest import write_frozen_config
from tests.integration.running import run, run_script


@dataclass(frozen=True)
class Road:
    """Checkpoints of the two stages before, and the configuration of the classifier with its own."""

    first_config: Path
    first: Path
    affinity: Path
    config: Path
    checkpoint: Path
    fitted: Any

    @property
    def parts(self) -> list[str]:
        """Words that a fit needs besides its configuration."""
        return ["--model.first_stage", str(self.first), "--model.affinity", str(self.affinity)]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> Road:
    folder = tmp_path_factory.mktemp("segment_frozen")
    first_config = write_frozen_config(folder, synthetic_root)
    content = yaml.safe_load(first_config.read_text())
    run("fit", first_config, "--trainer.limit_val_batches", "0")
    first = folder / "run" / "last.ckpt"

    def further(task: str, **model: Any) -> Path:
        own = {**content, "task": task, "model": model}
        del own["memory"]
        own["trainer"] = {
            **content["trainer"],
            "default_root_dir": str(folder / task),
            "max_epochs": 1,
            "check_val_every_n_epoch": 2,
        }
        place = {"dirpath": str(folder / task), "save_last": True}
        own["trainer"]["callbacks"] = [{**content["trainer"]["callbacks"][0], "init_args": place}]
        path = folder / f"{task}.yaml"
        path.write_text(yaml.safe_dump(own))
        return path

    affinity = further("affinity", backbone="resnet14", output_stride=16, weights=str(first), radius=3)
    masks = str(synthetic_root / "SegmentationClass")
    main(["affinity", "fit", "--config", str(affinity), "--data.train_mask_dir", masks])
    boundaries = folder / "affinity" / "last.ckpt"
    config = further("segment_frozen", scales=[1.0, 1.5])
    given = ["--model.first_stage", str(first), "--model.affinity", str(boundaries)]
    fitted = run("fit", config, *given)
    return Road(first_config, first, boundaries, config, folder / "segment_frozen" / "last.ckpt", fitted)


def masks_in(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "masks").glob("*.png"))}


def classifier_of(path: Path) -> dict[str, torch.Tensor]:
    state = torch.load(path, weights_only=True)["state_dict"]
    return {name: value for name, value in state.items() if name.startswith("network.classifier.")}


def test_fit_solves_for_the_classifier(road: Road):
    assert road.fitted.trainer.global_step == 3
    assert float(road.fitted.trainer.callback_metrics["train/cells"]) == 24 * 16
    assert bool(road.fitted.model.network.classifier.fitted)
    content = torch.load(road.checkpoint, weights_only=True)
    assert content["hyper_parameters"]["first_stage"]["backbone"] == "resnet14"
    assert content["hyper_parameters"]["affinity"]["radius"] == 3
    assert str(road.first.parent) not in str(content["hyper_parameters"])


def test_checkpoint_is_all_that_validate_and_predict_need(
    road: Road, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    hidden = [path.rename(path.with_suffix(".hidden")) for path in (road.first, road.affinity)]
    try:
        found = run("validate", road.config, "--ckpt_path", road.checkpoint)
        assert "val/miou" in capsys.readouterr().out
        folder = Path(found.trainer.default_root_dir)
        stored = json.loads((folder / "validate.json").read_text())
        assert stored["split"] == "val"
        assert stored["tags"] is None
        told = run("validate", road.config, "--ckpt_path", road.checkpoint, "--model.eval_tags", "image")
        assert list(told.model.hparams["scales"]) == [1.0, 1.5]
        assert json.loads((folder / "validate.json").read_text())["tags"] == "image"
        run("predict", road.config, "--ckpt_path", road.checkpoint)
    finally:
        for path in hidden:
            path.rename(path.with_suffix(".ckpt"))
    masks = masks_in(folder / "predictions")
    assert len(masks) == 6
    for mask in masks.values():
        assert mask.shape == (64, 64)
    settings = json.loads((folder / "predictions" / "predict.json").read_text())
    assert settings["num_classes"] == 6
    assert settings["propagation_steps"] == 1

    # Another classifier, however near, is told apart, and complete images are skipped by the same.
    run("predict", road.config, "--ckpt_path", road.checkpoint)
    content = torch.load(road.checkpoint, weights_only=True)
    content["state_dict"]["network.classifier.bias"][0] += 1e-6
    (tmp_path / "near").mkdir()
    torch.save(content, near := tmp_path / "near" / "last.ckpt")
    with pytest.raises(OutputError, match=r"made otherwise.*classifier: "):
        run("predict", road.config, "--ckpt_path", near)


def test_two_epochs_and_a_run_that_goes_on_have_the_same_result(road: Road, tmp_path: Path):
    content = yaml.safe_load(road.config.read_text())
    content["trainer"] |= {"max_epochs": 2}
    content["trainer"]["callbacks"][0]["init_args"] = {"dirpath": str(tmp_path), "save_last": True}
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    expected = classifier_of(road.checkpoint)
    twice = run("fit", path, *road.parts)
    assert "val/miou" in twice.trainer.callback_metrics
    assert classifier_of(tmp_path / "last.ckpt").keys() == expected.keys()
    for name, value in classifier_of(tmp_path / "last.ckpt").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)
    (tmp_path / "last.ckpt").unlink()
    resumed = run("fit", path, "--ckpt_path", road.checkpoint)
    assert resumed.trainer.current_epoch == 2
    assert resumed.trainer.global_step == 6
    for name, value in classifier_of(tmp_path / "last.ckpt").items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0)


def test_what_is_wrong_is_one_line(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    with pytest.raises(WeightsError, match="of the task 'localize', not of 'segment_frozen'"):
        run("validate", road.config, "--ckpt_path", road.first)
    with pytest.raises(WeightsError, match="of the task 'segment_frozen', not of 'localize'"):
        run("predict", road.first_config, "--ckpt_path", road.checkpoint)
    with pytest.raises(ArgumentError, match=r"^first_stage=None: give a checkpoint of rca fit with a frozen backbone"):
        run("fit", road.config)
    stop = ["--trainer.callbacks+=lightning.pytorch.callbacks.EarlyStopping", "--trainer.callbacks.monitor=train/loss"]
    with pytest.raises(ArgumentError, match=r"^EarlyStopping.monitor='train/loss': nothing in this run logs it"):
        run("fit", road.config, *road.parts, *stop)
    for name in ("segmenter.onnx", "segmenter.pt2"):
        words = ["export", "--ckpt_path", str(road.checkpoint), "--out", str(tmp_path / name)]
        monkeypatch.setattr("sys.argv", ["rca", *words])
        with pytest.raises(SystemExit) as stopped:
            console()
        assert str(stopped.value.code).startswith("rca: task='segment_frozen': its tags and walk are no plain network")
        assert "\n" not in str(stopped.value.code)
    assert not list(tmp_path.iterdir())
    capsys.readouterr()


def test_a_mask_that_cannot_be_read_is_skipped_and_listed(road: Road, synthetic_root: Path, tmp_path: Path):
    for path in (synthetic_root / "SegmentationClass").glob("*.png"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    broken = sorted(tmp_path.glob("train_*.png"))[0]
    broken.write_bytes(b"no mask")
    words = ["--data.train_mask_dir", str(tmp_path), "--trainer.default_root_dir", str(tmp_path / "run")]
    words += ["--data.on_bad_image", "skip", "--trainer.enable_checkpointing", "false", "--trainer.callbacks", "null"]
    done = run("fit", road.config, *road.parts, *words)
    assert float(done.trainer.callback_metrics["train/cells"]) == 23 * 16
    assert broken.stem in "".join(path.read_text() for path in (tmp_path / "run").rglob("*bad*"))


def test_script_scores_as_the_command_does(
    road: Road, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = ["--config", str(road.config), "--root", yaml.safe_load(road.config.read_text())["data"]["root"]]
    words += ["--ckpt", f"one={road.checkpoint}", f"two={road.checkpoint}", "--out", str(tmp_path / "scores.json")]
    run_script(monkeypatch, "score_frozen.py", *words)
    scores = json.loads((tmp_path / "scores.json").read_text())["scores"]
    assert len(scores) == 2 * 2 * 2
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(scores)
    walked = {(one["checkpoint"], one["tags"]): one["miou"] for one in scores if one["refinement"] == "walk"}
    for tags, name in (("none", "val/miou"), ("image", "val/miou_true_tags")):
        done = run("validate", road.config, "--ckpt_path", road.checkpoint, "--model.eval_tags", tags)
        assert walked["one", tags] == walked["two", tags]
        assert walked["one", tags] == pytest.approx(float(done.trainer.callback_metrics[name]), abs=1e-6)
