"""`rca fit | validate | predict --task one_stage` and `rca export` as a user runs them; resuming within an epoch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from rca_lightning import OneStageModule
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError
from tests.integration.endings import differences
from tests.integration.running import run, run_script


@pytest.fixture
def one_stage(config: Path) -> Path:
    """The configuration of the first stage, with the segmentation in its second epoch."""
    content = yaml.safe_load(config.read_text())
    content["task"] = "one_stage"
    content["model"] |= {
        "backbone": "resnet14", "weights": "none", "teacher_warmup": 1, "ramp_epochs": 0.5, "low": 0.3, "high": 0.5,
    }  # fmt: skip
    content["data"] |= {"crop_size": 48}
    config.write_text(yaml.safe_dump(content))
    return config


def test_fit_validate_predict_export(one_stage: Path, tmp_path: Path):
    fitted = run("fit", one_stage)
    assert isinstance(fitted.model, OneStageModule)
    assert float(fitted.trainer.callback_metrics["train/loss_segmentation"]) > 0
    during_fit = float(fitted.trainer.callback_metrics["val/miou"])
    last = tmp_path / "run" / "last.ckpt"
    run("validate", one_stage, "--ckpt_path", last)
    result = json.loads((tmp_path / "run" / "validate.json").read_text())
    assert result["miou"] == pytest.approx(during_fit)
    assert result["tags"] is None
    run("predict", one_stage, "--ckpt_path", last)
    masks = sorted((tmp_path / "run" / "predictions" / "masks").glob("*.png"))
    assert len(masks) == 6
    with Image.open(masks[0]) as mask:
        assert (mask.mode, mask.size) == ("P", (64, 64))
    out = tmp_path / "segmenter.pt2"
    main(["export", "--ckpt_path", str(last), "--out", str(out)])
    images = torch.rand(1, 3, 50, 61)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    module = OneStageModule.load_from_checkpoint(last, map_location="cpu").eval()
    with torch.no_grad():
        found = torch.export.load(out).module()(images)
        logits = module.teacher((images - mean[:, None, None]) / std[:, None, None])
        expected = torch.nn.functional.interpolate(logits, (50, 61), mode="bilinear")
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


def test_scoring_in_every_way_at_once_gives_what_validate_gives(
    one_stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """`experiments/voc2012_mini/score_segmenter.py` reads one stage too, here without mirror images."""
    run("fit", one_stage)
    last, out = tmp_path / "run" / "last.ckpt", tmp_path / "scores.json"
    root = yaml.safe_load(one_stage.read_text())["data"]["root"]
    words = ["--config", one_stage, "--root", root, "--ckpt", last, "--scales", 0.5, "--no-flip", "--out", out]
    run_script(monkeypatch, "score_segmenter.py", *words)
    found = {row["tags"] or "none": row["miou"] for row in json.loads(out.read_text())}
    for tags in ("none", "image"):
        options = ["--model.scales=[0.5]", f"--model.eval_tags={tags}", "--model.flip=false"]
        run("validate", one_stage, "--ckpt_path", last, *options)
        scored = json.loads((tmp_path / "run" / "validate.json").read_text())
        assert scored["miou"] == pytest.approx(found.pop(tags), abs=1e-6)
    assert not found
    localize = tmp_path / "localize.yaml"
    localize.write_text(yaml.safe_dump(yaml.safe_load(one_stage.read_text()) | {"task": "localize"}))
    with pytest.raises(SystemExit):
        run_script(monkeypatch, "score_segmenter.py", *words[2:], "--config", localize)
    assert "its task is localize; give a configuration of segment or one_stage" in capsys.readouterr().err


def test_training_goes_on_within_an_epoch(one_stage: Path, tmp_path: Path):
    content = yaml.safe_load(one_stage.read_text())
    content["trainer"] |= {"limit_val_batches": 0, "max_epochs": 3}

    def trained(folder: str, *more: str) -> dict[str, Any]:
        options = {"dirpath": str(tmp_path / folder), "save_last": True, "every_n_train_steps": 2, "save_top_k": -1}
        content["trainer"]["callbacks"][0]["init_args"] = options
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(content))
        main(["fit", "--config", str(path), *more])
        return dict(torch.load(tmp_path / folder / "last.ckpt", weights_only=True))

    whole = trained("whole")
    for name in ("epoch=1-step=4.ckpt", "epoch=1-step=6.ckpt"):  # within the second of three epochs, and at its end
        resumed = trained(f"from {name}", "--ckpt_path", str(tmp_path / "whole" / name))
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert differences(whole[part], resumed[part]) == []
    assert any(name.startswith("teacher.") for name in whole["state_dict"])


@pytest.mark.parametrize("writer", ["PseudoLabelWriter", "FeatureCacheCallback", "RegionMemoryCallback"])
def test_callbacks_of_the_first_stage_are_refused(one_stage: Path, writer: str, tmp_path: Path):
    content = yaml.safe_load(one_stage.read_text())
    arguments = {"PseudoLabelWriter": {"output_dir": str(tmp_path / "out")}}.get(writer, {})
    content["trainer"]["callbacks"].append({"class_path": f"rca_lightning.{writer}", "init_args": arguments})
    one_stage.write_text(yaml.safe_dump(content))
    with pytest.raises(ArgumentError, match=r"one_stage|memory:"):
        run("fit", one_stage)
