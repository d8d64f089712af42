"""From maps to pseudo labels as a user makes them: in batches, refined, and anew from stored maps."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, DatasetNotFoundError, OutputError
from rca_lightning.evaluation.auto_threshold import AutoThreshold
from rca_lightning.evaluation.map_kinds import map_kind
from tests.folder_contents import file_bytes
from tests.integration.conftest import write_config
from tests.integration.running import run


def writer(folder: Path, *options: str) -> list[str]:
    words = ["--trainer.callbacks+=rca_lightning.PseudoLabelWriter", f"--trainer.callbacks.output_dir={folder}"]
    return [*words, *(f"--trainer.callbacks.{option}" for option in options)]


def labels(config: Path, maps: Path, out: Path, *options: str) -> None:
    words = ["--config", str(config), "--maps", str(maps), "--output_dir", str(out), *options]
    main(["labels", *words])


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "pseudo_labels").glob("*.png"))}


@dataclass(frozen=True)
class Predicted:
    """A run of `rca fit`, and folders of two writers of `rca predict`."""

    config: Path
    checkpoint: Path
    fixed: Path
    two: Path


@pytest.fixture(scope="module")
def predicted(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> Predicted:
    folder = tmp_path_factory.mktemp("labels")
    config, checkpoint = write_config(folder, synthetic_root), folder / "run" / "last.ckpt"
    run("fit", config, "--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
    fixed, two = folder / "fixed", folder / "two"
    options = [*writer(fixed, "background_threshold=0.4", "refine=[pamr]")]
    options += writer(two, "background=two_thresholds", "high=0.9")
    run("predict", config, "--ckpt_path", checkpoint, *options)
    return Predicted(config, checkpoint, fixed, two)


def test_batches_of_one_size_give_the_maps_of_single_images(predicted: Predicted, tmp_path: Path):
    batches = ["--ckpt_path", predicted.checkpoint, "--data.eval_batch_size", 4]
    run("predict", predicted.config, *batches, *writer(tmp_path))
    for path in sorted((predicted.fixed / "cams").iterdir()):
        with np.load(path) as single, np.load(tmp_path / "cams" / path.name) as batched:
            assert single["classes"].tolist() == batched["classes"].tolist()
            np.testing.assert_allclose(single["maps"], batched["maps"], atol=2e-3)
    assert len(read_labels(tmp_path)) == 6


def test_labels_anew_from_stored_maps(predicted: Predicted, tmp_path: Path, capsys: pytest.CaptureFixture):
    config, maps, again, other = predicted.config, predicted.fixed / "cams", tmp_path / "again", tmp_path / "other"
    score = json.loads((predicted.fixed / "pseudo_labels.json").read_text())
    assert (score["images"], score["threshold"], score["curve"]) == (6, None, {})
    assert json.loads((predicted.fixed / "quality.json").read_text())["images"] == 6

    labels(config, maps, again, "--refine=[pamr]")  # at the threshold of rca predict
    assert "Labels of split 'val', 6 images" in capsys.readouterr().out
    first, second = read_labels(predicted.fixed), read_labels(again)
    assert first.keys() == second.keys()
    equal = np.concatenate([(first[name] == second[name]).ravel() for name in first])
    assert equal.mean() > 0.99  # stored maps are rounded to float16
    assert json.loads((again / "pseudo_labels.json").read_text())["miou"] == pytest.approx(score["miou"], abs=0.02)

    before = file_bytes(again / "pseudo_labels")
    labels(config, maps, again, "--background_threshold=0.4", "--refine=[pamr]")  # nothing left to do
    assert file_bytes(again / "pseudo_labels") == before
    with pytest.raises(OutputError, match=r"refine: \['pamr'\] there, \[\] now"):
        labels(config, maps, again, "--background_threshold=0.4")
    labels(config, maps, other, "--background_threshold=0.4", "--background=two_thresholds", "--low=0.2")
    assert any((label == 255).any() for label in read_labels(other).values())
    assert json.loads((other / "pseudo_labels.json").read_text())["ignored"] > 0


def test_what_cannot_be_had_without_the_network(predicted: Predicted, tmp_path: Path):
    config, maps, out = predicted.config, tmp_path / "cams", tmp_path / "out"
    shutil.copytree(predicted.fixed / "cams", maps)
    with pytest.raises(ArgumentError, match=r"^refine='random_walk': its features are not stored"):
        labels(config, maps, out, "--background_threshold=0.4", "--refine=[random_walk]")
    with pytest.raises(DatasetNotFoundError, match="is not a folder; give the folder cams"):
        labels(config, tmp_path / "nowhere", out, "--background_threshold=0.4")
    with pytest.raises(DatasetNotFoundError, match="none for 24 of 24 photographs"):
        labels(config, maps, out, "--background_threshold=0.4", "--data.predict_split=train")
    with pytest.raises(ArgumentError, match=r"^background_threshold=None: give one in \[0, 1\]"):
        labels(config, maps, out)  # there is no predict.json beside the maps
    assert not out.exists()
    with pytest.raises(ArgumentError, match=r"^high=None: give one in \[0, 1\]"):
        labels(config, maps, out, "--background=two_thresholds", "--low=0.2")
    labels(config, maps, out, "--background=power")  # which has no threshold
    assert len(read_labels(out)) == 6


def test_thresholds_are_those_of_the_writer_for_the_same_maps(predicted: Predicted, tmp_path: Path):
    for name, maps, high in (("fixed", predicted.fixed, 0.8), ("two", predicted.two, 0.9)):
        labels(predicted.config, maps / "cams", tmp_path / name, "--background=two_thresholds")
        settings = json.loads((tmp_path / name / "predict.json").read_text())
        assert (settings["low"], settings["high"]) == (0.5, high)  # the map of this network is the attention
    labels(predicted.config, predicted.two / "cams", tmp_path / "again")
    assert json.loads((tmp_path / "again" / "predict.json").read_text())["background_threshold"] == 0.7


def test_the_old_name_of_the_background_is_refused_with_the_new_one(predicted: Predicted, tmp_path: Path, capsys):
    with pytest.raises(SystemExit):
        labels(predicted.config, predicted.two / "cams", tmp_path / "out", "--rule=power")
    assert "rule: renamed in 0.2; give background=" in capsys.readouterr().err


def test_a_threshold_that_no_mask_chose(predicted: Predicted, tmp_path: Path, capsys: pytest.CaptureFixture):
    config, out = predicted.config, tmp_path / "predicted"
    run("predict", config, "--ckpt_path", predicted.checkpoint, *writer(out, "background_threshold=auto"))
    chosen = json.loads((out / "predict.json").read_text())
    kind = map_kind(
        attention=chosen["reads_attention"], contrasted=chosen["contrasted"], propagated=chosen["propagation_steps"] > 0
    )
    auto, of_no_kind, strengths = AutoThreshold(kind), AutoThreshold(), []
    for path in sorted((out / "cams").iterdir()):
        with np.load(path) as stored:
            for one in (auto, of_no_kind):
                one.update(torch.from_numpy(stored["maps"].astype(np.float32)))
            strengths.append(stored["maps"].max(axis=0).astype(np.float32))
    assert chosen["threshold_chosen"] == "auto"
    assert chosen["background_threshold"] == pytest.approx(auto.compute(), abs=0.006)  # stored maps are rounded
    for strength, label in zip(strengths, read_labels(out).values(), strict=True):
        sure = np.abs(strength - chosen["background_threshold"]) > 1e-3
        assert np.array_equal((label > 0)[sure], (strength > chosen["background_threshold"])[sure])

    labels(config, out / "cams", tmp_path / "again", "--background_threshold=auto")
    again = json.loads((tmp_path / "again" / "predict.json").read_text())
    assert again["background_threshold"] == auto.compute()
    (tmp_path / "again" / "pseudo_labels" / min(read_labels(out))).with_suffix(".png").unlink()
    again["background_threshold"] = 0.125  # what a folder was begun with stays
    (tmp_path / "again" / "predict.json").write_text(json.dumps(again))
    labels(config, out / "cams", tmp_path / "again", "--background_threshold=auto")
    assert json.loads((tmp_path / "again" / "predict.json").read_text())["background_threshold"] == 0.125
    with pytest.raises(OutputError, match="threshold_chosen: 'auto' there, None now"):
        labels(config, out / "cams", tmp_path / "again", "--background_threshold=0.125")
    (out / "predict.json").write_text(json.dumps(chosen | {"maps": "accumulated"}))  # as strong as no kind is
    labels(config, out / "cams", tmp_path / "accumulated", "--background_threshold=auto")
    accumulated = json.loads((tmp_path / "accumulated" / "predict.json").read_text())
    assert accumulated["background_threshold"] == of_no_kind.compute() != auto.compute()
    with pytest.raises(ArgumentError, match="background_threshold='auto': it is of background='fixed'"):
        labels(config, out / "cams", tmp_path / "more", "--background_threshold=auto", "--background=power")
