"""`rca affinity` as a user runs it: from the maps of `rca predict` to labels that are walked up to boundaries."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from PIL import Image

from rca_lightning import AffinityModule
from rca_lightning.cli import affinity
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, OutputError, WeightsError
from tests.integration.conftest import write_frozen_config
from tests.integration.endings import differences
from tests.integration.running import run


@dataclass(frozen=True)
class Road:
    """A frozen fit, its maps of the training split, and the configuration of an affinity fit with its checkpoint."""

    first: Path
    rca: Path
    maps: Path
    config: Path
    checkpoint: Path
    fitted: Any


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> Road:
    folder = tmp_path_factory.mktemp("affinity")
    first = write_frozen_config(folder, synthetic_root)
    content = yaml.safe_load(first.read_text())
    content["data"]["predict_split"] = "train"
    first.write_text(yaml.safe_dump(content))
    run("fit", first, "--trainer.limit_val_batches", "0")
    rca = folder / "run" / "last.ckpt"
    run("predict", first, "--ckpt_path", rca)

    del content["memory"], content["data"]["predict_split"]
    content["task"] = "affinity"
    content["model"] = {"backbone": "resnet14", "output_stride": 16, "weights": str(rca), "radius": 3}
    content["trainer"]["default_root_dir"] = str(folder / "affinity")
    content["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(folder / "affinity")
    config = folder / "affinity.yaml"
    config.write_text(yaml.safe_dump(content))
    maps = folder / "run" / "predictions" / "cams"
    fitted = main(["affinity", "fit", "--config", str(config), "--maps", str(maps), "--low", "0.3", "--high", "0.8"])
    return Road(first, rca, maps, config, folder / "affinity" / "last.ckpt", fitted)


def labels(road: Road, out: Path, *words: str) -> dict[str, np.ndarray]:
    main(["labels", "--config", str(road.first), "--maps", str(road.maps), "--output_dir", str(out), *words])
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((out / "pseudo_labels").glob("*.png"))}


def test_fit_makes_confident_labels_and_learns_from_them(road: Road):
    made = road.config.parent / "affinity" / affinity.LABELS_FOLDER
    settings = json.loads((made / "predict.json").read_text())
    assert (settings["background"], settings["low"], settings["high"]) == ("two_thresholds", 0.3, 0.8)
    written = [np.asarray(Image.open(path)) for path in (made / "pseudo_labels").glob("*.png")]
    assert len(written) == 24
    assert {0, 255} < set(np.unique(np.stack(written)).tolist())
    assert isinstance(road.fitted.model, AffinityModule)
    assert road.fitted.trainer.global_step == 2 * 3
    assert "val/loss" in road.fitted.trainer.callback_metrics
    backbone = torch.load(road.rca, weights_only=True)["state_dict"]["network.backbone.conv1.weight"]
    torch.testing.assert_close(road.fitted.model.network.backbone.state_dict()["conv1.weight"], backbone)


def test_validate_gives_the_loss_of_fit(road: Road, capsys: pytest.CaptureFixture[str]):
    main(["affinity", "validate", "--config", str(road.config), "--ckpt_path", str(road.checkpoint)])
    stored = json.loads((road.config.parent / "affinity" / "validate.json").read_text())
    assert stored["split"] == "val"
    assert stored["loss"] == pytest.approx(float(road.fitted.trainer.callback_metrics["val/loss"]), rel=1e-4)
    assert "Affinity loss of split 'val'" in capsys.readouterr().out


def test_labels_are_walked_and_name_the_checkpoint(road: Road, tmp_path: Path):
    options = ["--background_threshold", "0.4"]
    words = [*options, "--refine=[affinity]", "--affinity_ckpt", str(road.checkpoint)]
    walked = labels(road, tmp_path / "walked", *words)
    plain = labels(road, tmp_path / "plain", *options)
    assert walked.keys() == plain.keys()
    assert len(walked) == 24
    assert any(not np.array_equal(walked[name], plain[name]) for name in plain)
    settings = json.loads((tmp_path / "walked" / "predict.json").read_text())
    module = AffinityModule.load_from_checkpoint(road.checkpoint, map_location="cpu")
    assert settings["affinity"] == module.digest()

    content = torch.load(road.checkpoint, weights_only=True)
    content["state_dict"]["network.boundary.bias"] += 1e-6
    torch.save(content, tmp_path / "other.ckpt")
    with pytest.raises(OutputError, match=r"made otherwise.*affinity: "):
        labels(road, tmp_path / "walked", *words[:-1], str(tmp_path / "other.ckpt"))


def test_predict_walks_as_labels_do(road: Road, tmp_path: Path):
    content = torch.load(road.checkpoint, weights_only=True)
    # Six steps draw hardly a boundary: maps would be flat after the walk, and rounding would choose among the classes.
    content["state_dict"]["network.boundary.weight"].normal_(generator=torch.Generator().manual_seed(0))
    torch.save(content, sharp := tmp_path / "sharp.ckpt")
    walked = labels(road, tmp_path / "labels", "--refine=[affinity]", "--affinity_ckpt", str(sharp))
    assert len({*np.unique(np.stack([*walked.values()])).tolist()}) == 7
    writer = ["--trainer.callbacks+=rca_lightning.PseudoLabelWriter"]
    given = {"output_dir": tmp_path / "predicted", "refine": "[affinity]", "affinity_ckpt": sharp}
    writer += [f"--trainer.callbacks.{name}={value}" for name, value in given.items()]
    run("predict", road.first, "--ckpt_path", road.rca, *writer)
    for path in (tmp_path / "predicted" / "pseudo_labels").glob("*.png"):
        assert (np.asarray(Image.open(path)) == walked[path.stem]).mean() > 0.97  # stored maps are float16
    settings = json.loads((tmp_path / "predicted" / "predict.json").read_text())
    assert settings["refine"] == ["affinity"]
    assert settings["affinity"] == json.loads((tmp_path / "labels" / "predict.json").read_text())["affinity"]


def test_training_goes_on_exactly_within_an_epoch(road: Road, tmp_path: Path):
    content = yaml.safe_load(road.config.read_text())
    content["trainer"] |= {"limit_val_batches": 0, "max_epochs": 3}
    content["model"]["num_offsets"] = 5  # drawn by the step
    content["data"]["train_mask_dir"] = str(road.config.parent / "affinity" / affinity.LABELS_FOLDER / "pseudo_labels")

    def trained(folder: str, *more: str) -> dict[str, Any]:
        options = {"dirpath": str(tmp_path / folder), "save_last": True, "every_n_train_steps": 2, "save_top_k": -1}
        content["trainer"]["callbacks"][0]["init_args"] = options
        path = tmp_path / f"{folder}.yaml"
        path.write_text(yaml.safe_dump(content))
        main(["affinity", "fit", "--config", str(path), *more])
        return dict(torch.load(tmp_path / folder / "last.ckpt", weights_only=True))

    whole = trained("whole")
    for name in ("epoch=1-step=4.ckpt", "epoch=1-step=6.ckpt"):
        resumed = trained(f"from {name}", "--ckpt_path", str(tmp_path / "whole" / name))
        for part in ("state_dict", "optimizer_states", "lr_schedulers"):
            assert differences(whole[part], resumed[part]) == []


def test_maps_or_labels_are_needed_and_not_both(road: Road, tmp_path: Path):
    with pytest.raises(ArgumentError, match=r"^maps=None: give the folder cams .*--data.train_mask_dir"):
        main(["affinity", "fit", "--config", str(road.config)])
    both = ["--maps", str(road.maps), "--data.train_mask_dir", str(tmp_path)]
    with pytest.raises(ArgumentError, match=r"^data.train_mask_dir=.*give one of the two"):
        main(["affinity", "fit", "--config", str(road.config), *both])


def test_a_missing_or_wrong_checkpoint_is_refused(road: Road, tmp_path: Path):
    refine = ["--refine=[affinity]"]
    with pytest.raises(ArgumentError, match=r"^affinity_ckpt=None: .*needs a checkpoint of rca affinity fit"):
        labels(road, tmp_path, *refine)
    with pytest.raises(ArgumentError, match=r"^affinity_ckpt='nowhere.ckpt': there is no such file"):
        labels(road, tmp_path, *refine, "--affinity_ckpt", "nowhere.ckpt")
    with pytest.raises(WeightsError, match=r"^affinity_ckpt=.*the task 'localize'; give one of rca affinity fit"):
        labels(road, tmp_path, *refine, "--affinity_ckpt", str(road.rca))
    with pytest.raises(ArgumentError, match=r"^affinity_ckpt=.*nothing reads it"):
        labels(road, tmp_path, "--affinity_ckpt", str(road.checkpoint))
    with pytest.raises(ArgumentError, match=r"^refine=\['pamr', 'affinity'\]: .*only come first"):
        labels(road, tmp_path, "--refine=[pamr,affinity]", "--affinity_ckpt", str(road.checkpoint))
    with pytest.raises(WeightsError, match="task 'affinity', not of 'localize'"):
        run("predict", road.first, "--ckpt_path", road.checkpoint)


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_is_one_screen(words: list[str], capsys: pytest.CaptureFixture[str]):
    assert main(["affinity", *words]) is None
    printed = capsys.readouterr().out
    assert "--maps FOLDER" in printed
    assert len(printed.splitlines()) <= 30
    assert max(map(len, printed.splitlines())) <= 120


def test_words_of_the_process_are_those_of_the_task(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sys.argv", ["rca", "affinity", "fit", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    assert sys.argv == ["rca", "fit", "--help", "--task", "affinity"]
