"""`rca fit | validate | test | predict --task segment` as a user runs them, and the commands without a Trainer."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rca_lightning import SegmentationModule
from rca_lightning.cli.main import console, main
from rca_lightning.errors import ArgumentError, DataError, MissingExtraError, WeightsError
from tests.integration.running import fit, run, run_script


def last(tmp_path: Path) -> Path:
    return tmp_path / "run" / "last.ckpt"


def test_fit_validate_test_predict(
    segment: Path,
    segment_checkpoint: Path,
    trained_segmenter: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    fitted = trained_segmenter
    assert isinstance(fitted.model, SegmentationModule)
    assert fitted.model.class_names == fitted.datamodule.class_names
    during_fit = float(fitted.trainer.callback_metrics["val/miou"])

    capsys.readouterr()
    run("validate", segment, "--ckpt_path", last(tmp_path))
    printed = " ".join(capsys.readouterr().out.split())
    assert "Labels of split 'val', 6 images" in printed
    assert "threshold" not in printed
    result = json.loads((tmp_path / "run" / "validate.json").read_text())
    assert result["miou"] == pytest.approx(during_fit)
    assert (result["tags"], result["threshold"], result["curve"], result["classification_map"]) == (
        None,
        None,
        {},
        None,
    )
    assert set(result["per_class_iou"]) == {"background", *fitted.datamodule.class_names}

    run("test", segment, "--ckpt_path", last(tmp_path), "--data.eval_split", "train", "--model.scales", "[0.5,1.0]")
    result = json.loads((tmp_path / "run" / "test.json").read_text())
    assert (result["split"], result["images"], result["ignored"]) == ("train", 24, 0.0)

    cli = run("predict", segment, "--ckpt_path", last(tmp_path))
    folder = tmp_path / "run" / "predictions"
    assert f"predictions: {folder}" in capsys.readouterr().out
    pictures = sorted(folder.rglob("*.png"))
    assert {path.stem for path in pictures} == {record.image_id for record in cli.datamodule._predict.records}
    module = SegmentationModule.load_from_checkpoint(last(tmp_path), map_location="cpu").eval()
    for batch in cli.datamodule.predict_dataloader():
        (path,) = [path for path in pictures if path.stem == batch["image_id"][0]]
        with Image.open(path) as picture:
            np.testing.assert_array_equal(np.asarray(picture), module.label_images(batch["image"])[0].labels.numpy())


def test_scoring_in_every_way_at_once_gives_what_validate_gives(
    segment: Path, segment_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """`experiments/voc2012_mini/score_segmenter.py`."""
    out, root = tmp_path / "scores.json", yaml.safe_load(segment.read_text())["data"]["root"]
    words = ["--config", segment, "--root", root, "--ckpt", last(tmp_path), "--scales", 1, 0.5, "--out", out]
    run_script(monkeypatch, "score_segmenter.py", *words)
    found = {(tuple(row["scales"]), row["tags"] or "none"): row["miou"] for row in json.loads(out.read_text())}
    assert len(found) == 4
    for (scales, tags), miou in found.items():
        options = [f"--model.scales={list(scales)}", f"--model.eval_tags={tags}", "--model.flip=true"]
        run("validate", segment, "--ckpt_path", last(tmp_path), *options)
        assert json.loads((tmp_path / "run" / "validate.json").read_text())["miou"] == pytest.approx(miou, abs=1e-6)
    assert found[(1.0,), "image"] != found[(1.0,), "none"]


def test_resume_equals_uninterrupted(segment: Path, tmp_path: Path):
    epochs = "--trainer.max_epochs=3"
    whole = fit(segment, "whole", epochs)
    assert fit(segment, "stopped", epochs, stop_after=1).trainer.current_epoch == 1
    resumed = fit(segment, "resumed", epochs, "--ckpt_path", tmp_path / "stopped" / "last.ckpt")
    assert resumed.trainer.global_step == whole.trainer.global_step
    for name, expected in whole.model.state_dict().items():
        assert torch.equal(expected, resumed.model.state_dict()[name]), name


def test_pseudo_labels_come_from_a_folder_of_their_own(segment: Path, tmp_path: Path, synthetic_root: Path):
    labels = tmp_path / "pseudo_labels"
    labels.mkdir()
    for path in (synthetic_root / "SegmentationClass").glob("train_*.png"):
        Image.fromarray(np.full((64, 64), 2, dtype=np.uint8)).save(labels / path.name)
    run("fit", segment, "--data.train_mask_dir", labels, "--trainer.limit_val_batches=0")
    result = run("validate", segment, "--ckpt_path", last(tmp_path)).model.evaluation.last_result
    assert result.iou[0] < 0.05  # scored on the true masks: what was learned is to call everything 2
    assert result.recall[2] > 0.9


def test_training_without_masks_is_refused_before_the_first_step(segment: Path):
    with pytest.raises(DataError, match=r"^train_masks: 24 of 24 training images have no mask.*train_mask_dir"):
        run("fit", segment, "--data.train_masks", "false")


@pytest.mark.parametrize(
    ("name", "tasks", "words"),
    [
        ("PanelCallback", "localize or one_stage", ()),
        ("RegionMemoryCallback", "localize or one_stage", ()),
        ("PseudoLabelWriter", "localize", ("--trainer.callbacks.output_dir=labels",)),
    ],
)
def test_callback_of_another_task_is_refused_by_name(segment: Path, name: str, tasks: str, words: tuple[str, ...]):
    with pytest.raises(ArgumentError, match=f"callbacks='{name}': it is for --task {tasks}, this is segment"):
        run("fit", segment, f"--trainer.callbacks+=rca_lightning.{name}", *words)


def test_averaged_weights_are_what_is_scored_and_training_resumes(segment: Path, tmp_path: Path):
    content = yaml.safe_load(segment.read_text())
    average = {
        "class_path": "lightning.pytorch.callbacks.EMAWeightAveraging",
        "init_args": {"decay": 0.5, "use_buffers": True},
    }
    content["trainer"]["callbacks"].append(average)
    segment.write_text(yaml.safe_dump(content))
    path = last(tmp_path)
    during_fit = float(run("fit", segment).trainer.callback_metrics["val/miou"])
    saved = torch.load(path, weights_only=True)
    assert set(saved["current_model_state"]) == set(saved["state_dict"])
    name = "network.head.classifiers.0.weight"
    assert not torch.equal(saved["current_model_state"][name], saved["state_dict"][name])

    validated = run("validate", segment, "--ckpt_path", path)
    assert torch.equal(validated.model.state_dict()[name], saved["state_dict"][name])
    assert float(validated.trainer.callback_metrics["val/miou"]) == pytest.approx(during_fit)
    found = run("validate", segment, "--ckpt_path", "last")  # what Lightning looks up itself
    assert torch.equal(found.model.state_dict()[name], saved["state_dict"][name])
    loaded = SegmentationModule.load_from_checkpoint(path, map_location="cpu")
    assert torch.equal(loaded.state_dict()[name], saved["state_dict"][name])

    # A resumed run goes on with the weights that were trained, not with their average.
    resumed = run("fit", segment, "--ckpt_path", path, "--trainer.max_epochs=3", "--trainer.limit_val_batches=0")
    assert resumed.trainer.global_step == saved["global_step"] + 3
    again = torch.load(path, weights_only=True)
    assert int(again["averaging_state"]["n_averaged"]) == int(saved["averaging_state"]["n_averaged"]) + 3


def test_averaging_resumed_equals_uninterrupted(segment: Path, tmp_path: Path):
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.5}}

    def trained(folder: str, *more: object, stop_after: int | None = None) -> dict:
        words = ("--trainer.max_epochs=2", *more)
        fit(segment, folder, *words, stop_after=stop_after, callbacks=(average,))
        return torch.load(tmp_path / folder / "last.ckpt", weights_only=True)

    whole = trained("whole")
    trained("stopped", stop_after=1)
    resumed = trained("resumed", "--ckpt_path", tmp_path / "stopped" / "last.ckpt")
    for part in ("state_dict", "current_model_state"):
        for name, expected in whole[part].items():
            assert torch.equal(expected, resumed[part][name]), (part, name)


def test_checkpoint_of_the_other_task_is_one_sentence(config: Path, segment_checkpoint: Path):
    for words in (["--ckpt_path", segment_checkpoint], ["--ckpt_path", "last"]):
        with pytest.raises(WeightsError, match="of the task 'segment', not of 'localize'; give --task segment"):
            run("fit", config, *words)


def test_missing_crf_is_told_before_the_first_image(
    segment: Path, segment_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(sys.modules, "pydensecrf.densecrf", None)
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[crf\]"):
        run("validate", segment, "--ckpt_path", segment_checkpoint, "--model.crf", "true")


@pytest.mark.parametrize(
    "option",
    [
        ["--model.head", "deeplabv3plus", "--data.batch_size", "1"],
        ["--trainer.precision", "bf16-mixed", "--model.channels_last", "true"],
        ["--trainer.accumulate_grad_batches", "2"],
    ],
    ids=str,
)
def test_options(segment: Path, option: list[str]):
    cli = run("fit", segment, *option, "--trainer.limit_train_batches", 3, "--trainer.limit_val_batches", 1)
    assert torch.isfinite(cli.trainer.callback_metrics["train/loss"])
    assert 0 <= float(cli.trainer.callback_metrics["val/miou"]) <= 1


@pytest.mark.parametrize(
    ("task", "own", "other"),
    [
        ("segment", "head", "memory"),
        ("localize", "contrast", "head"),
        ("one_stage", "teacher_decay", "tag_weight"),
        ("affinity", "radius", "head"),
    ],
)
def test_help_shows_the_arguments_of_the_task(task, own, other, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["fit", "--task", task, "--help"])
    printed = capsys.readouterr().out
    assert f"--model.{own} " in printed
    assert f"--model.{other} " not in printed
    assert ("--memory." in printed) == (task in {"localize", "one_stage"})
    assert ("--features." in printed) == (task in {"localize", "affinity"})
    assert "--task {localize,segment,segment_frozen,one_stage,affinity}" in printed


def said_by_console(monkeypatch: pytest.MonkeyPatch, *words: str) -> str:
    monkeypatch.setattr("sys.argv", ["rca", *words])
    with pytest.raises(SystemExit) as stopped:
        console()
    return str(stopped.value)


def test_unknown_task_is_one_line(monkeypatch: pytest.MonkeyPatch):
    said = said_by_console(monkeypatch, "fit", "--task", "classify")
    assert said == "rca: task='classify': give one of localize, segment, segment_frozen, one_stage, affinity"


@pytest.mark.parametrize(
    ("command", "module"), [("export", "rca_lightning.cli.export"), ("check", "rca_lightning.cli.check")]
)
def test_commands_without_a_trainer_get_their_words(command, module, monkeypatch: pytest.MonkeyPatch):
    taken: list[list[str]] = []
    stand_in = types.ModuleType(module)
    stand_in.main = taken.append
    monkeypatch.setitem(sys.modules, module, stand_in)
    assert main([command, "--one", "two"]) is None
    monkeypatch.setattr("sys.argv", ["rca", command, "three"])
    console()
    assert taken == [["--one", "two"], ["three"]]
