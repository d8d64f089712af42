"""`HubModel`: a local folder in the layout of the Hub is read back to the same masks, and its card tells of the run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.unit.prediction.conftest import NAMES

from rca_lightning.errors import DataError

huggingface_hub = pytest.importorskip("huggingface_hub")
from rca_lightning.prediction.hub import HubModel  # noqa: E402

RUN = {
    "images": 12,
    "tagged": 11,
    "settings": {"threshold": 0.25, "photographs": "/home/someone/photographs"},
    "scores": {
        "miou": 0.5678,
        "miou_interval": {"low": 0.5, "high": 0.625, "level": 0.95},
        "per_class_iou": {"background": 0.9, NAMES[0]: 0.25, NAMES[1]: None},
        "protocol": {"split": {"images": 9}, "supervision": {"tags": "image"}, "threshold": "auto"},
    },
}


@pytest.fixture
def saved(checkpoints, tmp_path) -> Path:
    (tmp_path / "run.json").write_text(json.dumps(RUN))
    model = HubModel.from_checkpoint(
        checkpoints["localize"], run=tmp_path / "run.json", licence="cc-by-4.0", device="cpu"
    )
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("task", ["localize", "segment", "segment_frozen", "one_stage"])
def test_a_folder_is_read_back_to_the_same_masks(task, checkpoints, pixels, tmp_path):
    model = HubModel.from_checkpoint(checkpoints[task], device="cpu")
    model.save_pretrained(tmp_path / "model")
    again = HubModel.from_pretrained(str(tmp_path / "model"), device="cpu")
    assert (again.task, again.class_names) == (task, tuple(NAMES))
    for photograph in pixels[:2]:
        assert np.array_equal(again.predict(photograph).mask, model.predict(photograph).mask)


def test_folder_holds_tensors_and_arguments_alone(saved):
    assert sorted(file.name for file in saved.iterdir()) == ["README.md", "config.json", "rca.ckpt"]
    content = torch.load(saved / "rca.ckpt", weights_only=True)
    assert not {"optimizer_states", "loops", "callbacks"} & content.keys()
    assert json.loads((saved / "config.json").read_text())["class_names"] == NAMES


def test_card_tells_of_the_run_and_of_no_folder_of_the_machine(saved):
    card = huggingface_hub.ModelCard.load(saved / "README.md")
    assert card.data.license == "cc-by-4.0"
    assert card.data.library_name == "rca-lightning"
    assert card.data.pipeline_tag == "image-segmentation"
    for line in (
        "12 photographs, 11 of them with tags.", f"6 classes: {', '.join(NAMES)}.", "| mean | 0.568 |",
        f"| {NAMES[0]} | 0.250 |", "| threshold | 0.25 |", "| backbone | resnet14 |",
    ):  # fmt: skip
        assert line in card.text
    told = "Scored with true masks: 9 images, true tags, threshold auto; 95 % interval over images 50.0 to 62.5"
    assert told in card.text
    assert f"| {NAMES[1]} |" not in card.text  # which takes no part in the score
    assert "someone" not in card.text


def test_card_of_an_older_run_has_its_scores(checkpoints):
    run = {"scores": {"miou": 0.5, "iou": {"background": 0.75}}}
    card = HubModel.from_checkpoint(checkpoints["localize"], run=run, device="cpu").generate_model_card()
    assert "| background | 0.750 |\n| mean | 0.500 |" in card.text


def test_pushing_uploads_what_is_saved(checkpoints, monkeypatch):
    uploaded = {}

    def create(self, repo_id, **_):
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload(self, *, repo_id, folder_path, **_):
        uploaded[repo_id] = sorted(file.name for file in Path(folder_path).iterdir())

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", create)
    monkeypatch.setattr(huggingface_hub.HfApi, "upload_folder", upload)
    HubModel.from_checkpoint(checkpoints["localize"], device="cpu").push_to_hub("someone/shapes")
    assert uploaded == {"someone/shapes": ["README.md", "config.json", "rca.ckpt"]}


def test_a_run_that_cannot_be_read_is_named(checkpoints, tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(DataError, match=r"run='.*run\.json' cannot be read"):
        HubModel.from_checkpoint(checkpoints["localize"], run=tmp_path / "run.json")


def test_the_library_does_not_load_it_unasked():
    code = "import sys, rca_lightning; rca_lightning.load; print('huggingface_hub' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown.strip() == "False"
