"""The recipes for the small real data sets, on a few batches: fit, validate, predict."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.cli.tasks import RCACLI

ROOT = Path(__file__).resolve().parents[2]
RECIPES = {
    "voc2012_mini": ("experiments/voc2012_mini/trained_rca.yaml", "JPEGImages", "val"),
    "coco2017_mini": ("experiments/coco2017_mini/rca.yaml", "train2017", "train"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A run folder that goes at once: the checkpoints of a ResNet-50 are large."""
    yield tmp_path / "run"
    shutil.rmtree(tmp_path / "run", ignore_errors=True)


@pytest.mark.parametrize("name", RECIPES)
def test_fit_validate_predict(name: str, shared_root: Path, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    recipe, image_dir, split = RECIPES[name]
    root = shared_root / "data" / name
    common = [f"--config={recipe}", f"--data.root={root}", f"--trainer.default_root_dir={folder}",
              "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--model.stride_in=1x1",
              "--model.flip=false"]  # fmt: skip

    def rca(command: str, *more: str) -> RCACLI:
        return main([command, *common, *more])

    weights = shared_root / "weights" / "resnet50_v1_imagenet_fp16.pth"
    fitted = rca(
        "fit", f"--model.weights={weights}", "--trainer.max_epochs=2", "--trainer.limit_train_batches=2",
        "--data.batch_size=4", "--data.crop_size=96", "--model.confidence=0", "--model.warmup_epochs=1",
        "--model.backbone_mode=trained",
    )  # fmt: skip
    assert fitted.trainer.global_step == 4
    assert all(torch.isfinite(value) for key, value in fitted.trainer.callback_metrics.items() if "loss" in key)
    memory = fitted.model.memory
    stored = {memory.image_id(label, slot) for label in range(memory.num_classes) for slot in range(memory.slots)}
    assert stored - {""} <= {path.stem for path in (root / image_dir).iterdir()}
    assert 4 <= len(stored - {""}) <= 16
    assert fitted.model.network.aggregation.valid.any()  # the second epoch had prototypes

    checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
    rca("validate", checkpoint, "--trainer.limit_val_batches=2")
    result = json.loads((folder / "validate.json").read_text())
    assert (result["split"], result["images"], result["tags"]) == (split, 2, "image")
    assert set(result["per_class_iou"]) == {"background", *fitted.datamodule.class_names}
    assert result["oracle_miou"] == pytest.approx(max(result["curve"].values()))
    assert 0 < result["miou_interval"]["low"] <= result["miou_interval"]["high"] < 1
    assert 0 < result["miou"] < 1

    rca("predict", checkpoint, "--trainer.limit_predict_batches=2")
    labels = sorted((folder / "predictions" / "pseudo_labels").glob("*.png"))
    assert len(labels) == 2
    for path in labels:
        photograph = Image.open(root / image_dir / f"{path.stem}.jpg")
        picture = Image.open(path)
        assert (picture.mode, picture.size) == ("P", photograph.size)
        with np.load(folder / "predictions" / "cams" / f"{path.stem}.npz", allow_pickle=False) as cams:
            height_and_width = photograph.size[::-1]
            assert cams["maps"].shape == (len(cams["classes"]), *height_and_width)
            assert tuple(cams["size"]) == height_and_width
            assert len(cams["classes"]) > 0
            assert set(np.unique(np.asarray(picture))) <= {0, *(cams["classes"] + 1)}


@pytest.mark.parametrize("split", ["train", "val"])
def test_committed_ids_are_those_of_the_subset(split: str, shared_root: Path):
    committed = (ROOT / "experiments" / "voc2012_mini" / f"{split}.txt").read_text().split()
    beside = shared_root / "data" / "voc2012_mini" / "ImageSets" / "Segmentation" / f"{split}.txt"
    assert committed == beside.read_text().split()
    assert len(set(committed)) == len(committed) > 300
