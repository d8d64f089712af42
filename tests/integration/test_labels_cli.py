"""From maps to pseudo labels as a user makes them: in batches, refined, and anew from stored maps."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, DatasetNotFoundError, OutputError
from tests.folder_contents import file_bytes
from tests.integration.running import run


@pytest.fixture
def checkpoint(config: Path, tmp_path: Path) -> Path:
    run("fit", config, "--trainer.max_epochs", "1")
    return tmp_path / "run" / "last.ckpt"


def writer(folder: Path, *options: str) -> list[str]:
    words = ["--trainer.callbacks+=rca_lightning.PseudoLabelWriter", f"--trainer.callbacks.output_dir={folder}"]
    return [*words, *(f"--trainer.callbacks.{option}" for option in options)]


def labels(config: Path, maps: Path, out: Path, *options: str) -> None:
    words = ["--config", str(config), "--maps", str(maps), "--output_dir", str(out), *options]
    main(["labels", *words])


def read_labels(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "pseudo_labels").glob("*.png"))}


def test_batches_of_one_size_give_the_maps_of_single_images(config: Path, checkpoint: Path, tmp_path: Path):
    one, four = tmp_path / "one", tmp_path / "four"
    run("predict", config, "--ckpt_path", checkpoint, *writer(one))
    run("predict", config, "--ckpt_path", checkpoint, "--data.eval_batch_size", 4, *writer(four))
    for path in sorted((one / "cams").iterdir()):
        with np.load(path) as single, np.load(four / "cams" / path.name) as batched:
            assert single["classes"].tolist() == batched["classes"].tolist()
            np.testing.assert_allclose(single["maps"], batched["maps"], atol=2e-3)
    assert len(read_labels(four)) == 6


def test_labels_anew_from_stored_maps(config: Path, checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture):
    stored, again, other = tmp_path / "stored", tmp_path / "again", tmp_path / "other"
    run("predict", config, "--ckpt_path", checkpoint, *writer(stored, "background_threshold=0.4", "refine=[pamr]"))
    score = json.loads((stored / "pseudo_labels.json").read_text())
    assert (score["images"], score["threshold"], score["curve"]) == (6, None, {})
    assert json.loads((stored / "quality.json").read_text())["images"] == 6
    capsys.readouterr()

    labels(config, stored / "cams", again, "--refine=[pamr]")  # at the threshold of rca predict
    assert "Labels of split 'val', 6 images" in capsys.readouterr().out
    first, second = read_labels(stored), read_labels(again)
    assert first.keys() == second.keys()
    equal = np.concatenate([(first[name] == second[name]).ravel() for name in first])
    assert equal.mean() > 0.99  # stored maps are rounded to float16
    assert json.loads((again / "pseudo_labels.json").read_text())["miou"] == pytest.approx(score["miou"], abs=0.02)

    before = file_bytes(again / "pseudo_labels")
    labels(config, stored / "cams", again, "--background_threshold=0.4", "--refine=[pamr]")  # nothing left to do
    assert file_bytes(again / "pseudo_labels") == before
    with pytest.raises(OutputError, match=r"refine: \['pamr'\] there, \[\] now"):
        labels(config, stored / "cams", again, "--background_threshold=0.4")
    labels(config, stored / "cams", other, "--background_threshold=0.4", "--rule=two_thresholds", "--low=0.2")
    assert any((label == 255).any() for label in read_labels(other).values())
    assert json.loads((other / "pseudo_labels.json").read_text())["ignored"] > 0


def test_what_cannot_be_had_without_the_network(config: Path, checkpoint: Path, tmp_path: Path):
    run("predict", config, "--ckpt_path", checkpoint, *writer(tmp_path / "stored"))
    maps, out = tmp_path / "stored" / "cams", tmp_path / "out"
    with pytest.raises(ArgumentError, match=r"^refine='random_walk': its features are not stored"):
        labels(config, maps, out, "--background_threshold=0.4", "--refine=[random_walk]")
    with pytest.raises(DatasetNotFoundError, match="is not a folder; give the folder cams"):
        labels(config, tmp_path / "nowhere", out, "--background_threshold=0.4")
    with pytest.raises(DatasetNotFoundError, match="none for 24 of 24 photographs"):
        labels(config, maps, out, "--background_threshold=0.4", "--data.predict_split=train")
    (tmp_path / "stored" / "predict.json").unlink()
    with pytest.raises(ArgumentError, match=r"^background_threshold=None: give one in \[0, 1\]"):
        labels(config, maps, out)
    assert not out.exists()
    with pytest.raises(ArgumentError, match=r"^high=None: give one in \[0, 1\]"):
        labels(config, maps, out, "--rule=two_thresholds", "--low=0.2")
    labels(config, maps, out, "--rule=power")  # which has no threshold
    assert len(read_labels(out)) == 6


def test_levels_are_those_of_the_writer_for_the_same_maps(config: Path, checkpoint: Path, tmp_path: Path):
    stored, two, again = tmp_path / "stored", tmp_path / "two", tmp_path / "again"
    run("predict", config, "--ckpt_path", checkpoint, *writer(stored))
    run("predict", config, "--ckpt_path", checkpoint, *writer(two, "rule=two_thresholds", "high=0.9"))
    for maps, out, high in ((stored, tmp_path / "out", 0.8), (two, again, 0.9)):
        labels(config, maps / "cams", out, "--rule=two_thresholds")
        settings = json.loads((out / "predict.json").read_text())
        assert (settings["low"], settings["high"]) == (0.5, high)  # the map of this network is the attention
    labels(config, two / "cams", tmp_path / "fixed")
    assert json.loads((tmp_path / "fixed" / "predict.json").read_text())["background_threshold"] == 0.7
