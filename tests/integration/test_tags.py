"""Photographs of known tags, of none and of unknown ones on the whole road, and classes without prototypes."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from tests.integration.running import run

TOLD, NONE, UNKNOWN = "told", "none", "unknown"


@pytest.fixture
def photographs(tmp_path: Path, synthetic_root: Path) -> list[str]:
    """Arguments of a folder of three photographs."""
    root = tmp_path / "photographs"
    root.mkdir()
    for image, name in zip(sorted((synthetic_root / "JPEGImages").iterdir()), (TOLD, NONE, UNKNOWN), strict=False):
        shutil.copy(image, root / f"{name}.jpg")
    (root / "tags.csv").write_text(f"image,tags\n{TOLD},{CLASS_NAMES[2]}\n{NONE},\n")
    options = {"root": root, "image_dir": ".", "tags_file": "tags.csv", "split_files": "null", "mask_dir": "null"}
    return [f"--data.{name}={value}" for name, value in options.items()] + ["--data.eval_batch_size=3"]


def drawn(folder: Path, kind: str) -> dict[str, set[int]]:
    files = (folder / kind).glob("*.png")
    return {path.stem: set(np.unique(np.asarray(Image.open(path))).tolist()) - {0} for path in files}


def test_maps_and_labels_tell_none_from_unknown(config: Path, checkpoint: Path, tmp_path: Path, photographs: list[str]):
    out, again = tmp_path / "out", tmp_path / "again"
    words = ["--trainer.callbacks+=rca_lightning.PseudoLabelWriter", f"--trainer.callbacks.output_dir={out}"]
    run("predict", config, "--ckpt_path", checkpoint, *photographs, *words)
    main(["labels", "--config", str(config), *photographs, f"--maps={out / 'cams'}", f"--output_dir={again}"])
    for folder in (out, again):
        labels = drawn(folder, "pseudo_labels")
        assert (labels[TOLD], labels[NONE]) == ({3}, set())
        assert labels[UNKNOWN]
    classes = {path.stem: np.load(path)["classes"].tolist() for path in (out / "cams").glob("*.npz")}
    assert (classes[TOLD], classes[NONE]) == ([2], [])
    assert {label - 1 for label in labels[UNKNOWN]} <= set(classes[UNKNOWN])


def test_segmenter_tells_none_from_unknown(
    segment: Path, segment_checkpoint: Path, tmp_path: Path, photographs: list[str]
):
    words = ["--trainer.callbacks+=rca_lightning.MaskWriter", f"--trainer.callbacks.output_dir={tmp_path}/out"]
    told = ["--model.predict_tags=image"]
    run("predict", segment, "--ckpt_path", segment_checkpoint, *photographs, *words, *told)
    labels = drawn(tmp_path / "out", "masks")
    assert labels[TOLD] <= {3}
    assert labels[NONE] == set()
    assert labels[UNKNOWN]


def test_image_of_no_tag_is_background_in_the_score(config: Path, checkpoint: Path, tmp_path: Path, photographs):
    masks = tmp_path / "masks"
    masks.mkdir()
    for name in (TOLD, NONE, UNKNOWN):
        Image.fromarray(np.zeros((64, 64), np.uint8)).save(masks / f"{name}.png")
    root = tmp_path / "photographs"
    (root / f"{TOLD}.jpg").unlink()
    (root / f"{UNKNOWN}.jpg").unlink()
    (root / "tags.csv").write_text(f"image,tags\n{NONE},\n")
    words = [word for word in photographs if "mask" not in word]
    cli = run("validate", config, "--ckpt_path", checkpoint, *words, f"--data.mask_dir={masks}")
    assert cli.model.evaluation.last_result.miou == 1.0


def test_training_too_short_to_cluster_says_so_and_its_maps_are_those_of_the_first_head(
    config: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    with caplog.at_level(logging.WARNING):
        run("fit", config, "--trainer.max_epochs=1", "--model.warmup_epochs=2", "--trainer.limit_val_batches=0")
    assert "max_epochs=1: training ends before the first clustering" in caplog.text
    caplog.clear()
    out, coarse = tmp_path / "out", tmp_path / "coarse"
    for folder, more in ((out, []), (coarse, ["--model.final_map=coarse"])):
        words = ["--trainer.callbacks+=rca_lightning.PseudoLabelWriter", f"--trainer.callbacks.output_dir={folder}"]
        with caplog.at_level(logging.WARNING):
            run("predict", config, "--ckpt_path", tmp_path / "run" / "last.ckpt", *words, *more)
        assert caplog.text.count("prototypes: no class has any") == 1, "once, and not where no attention is read"
    assert json.loads((out / "predict.json").read_text())["reads_attention"] is False
    files = sorted((out / "cams").glob("*.npz"))
    maps = [(np.load(path)["maps"], np.load(coarse / "cams" / path.name)["maps"]) for path in files]
    assert all(np.array_equal(*pair) for pair in maps)
    assert any(one.any() for one, _ in maps)
