"""What the writer tells at the end: how good the labels look, and how good they are."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.prediction_runs import Photographs, predict

from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.data.records import Record
from rca_lightning.errors import DataError, DatasetNotFoundError, OutputError
from rca_lightning.modules.rca_module import RCAModule


@pytest.fixture(scope="module")
def module() -> RCAModule:
    torch.manual_seed(3)  # maps that neither are 0 nor full
    return RCAModule(
        num_classes=2,
        class_names=["cat", "dog"],
        backbone="resnet14",
        output_stride=8,
        flip=False,
        contrast=False,
        aggregation=False,
    )


def masks_of(data: Photographs, folder: Path, height: int = 32) -> dict[str, np.ndarray]:
    """Gives every photograph but the last a random mask."""
    masks = {}
    folder.mkdir(parents=True)
    for seed, sample in enumerate(data.samples):
        path = folder / f"{sample['image_id']}.png"
        if sample is not data.samples[-1]:
            mask = np.random.default_rng(seed).choice([0, 1, 2, 255], (height, 40)).astype(np.uint8)
            Image.fromarray(mask).save(path)
            masks[sample["image_id"]] = mask
        data.predict_records.append(Record(path.stem, path, (0, 1), mask=path if path.exists() else None))
    return masks


def label_on_disk(folder: Path, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(folder / "pseudo_labels" / f"{image_id}.png"))


def test_labels_are_scored_against_the_masks(tmp_path, module, capsys):
    data, out = Photographs("a", "b", "c"), tmp_path / "out"
    masks = masks_of(data, tmp_path / "masks")
    module.hparams["propagation_steps"] = 0  # it leaves nothing between the thresholds in maps of random weights
    predict(module, PseudoLabelWriter(str(out), background="two_thresholds"), data)
    found = json.loads((out / "pseudo_labels.json").read_text())
    assert (found["split"], found["images"], found["tags"]) == ("shots", 2, "image")
    assert (found["threshold"], found["curve"], found["classification_map"]) == (None, {}, None)
    true = np.concatenate([mask.ravel() for mask in masks.values()])
    drawn = np.concatenate([label_on_disk(out, name).ravel() for name in masks])[true != 255]
    true = true[true != 255]
    iou = {}
    for value, name in enumerate(("background", "cat", "dog")):
        hit = ((true == value) & (drawn == value)).sum()
        iou[name] = hit / ((true == value) | (drawn == value)).sum()
        assert found["per_class_recall"][name] == pytest.approx(hit / (true == value).sum())
    assert found["per_class_iou"] == pytest.approx(iou)
    assert found["miou"] == pytest.approx(sum(iou.values()) / 3)
    assert found["ignored"] == pytest.approx((drawn == 255).mean())
    assert found["ignored"] > 0
    assert "Labels of split 'shots', 2 images" in capsys.readouterr().out


def test_photographs_without_tags_are_told_of(tmp_path, module):
    data, out = Photographs("a", "b", "c"), tmp_path / "out"
    masks_of(data, tmp_path / "masks")
    data.predict_records[0] = replace(data.predict_records[0], tags=None)
    predict(module, PseudoLabelWriter(str(out)), data)
    found = json.loads((out / "pseudo_labels.json").read_text())
    assert found["tags"] == found["protocol"]["supervision"]["tags"] == "mixed"
    assert found["protocol"]["tag_threshold"] == {"chosen": "default", "value": 0.5}
    data.predict_records[0] = replace(data.predict_records[0], tags=(0, 1))
    predict(module, PseudoLabelWriter(str(tmp_path / "other")), data)
    found = json.loads((tmp_path / "other" / "pseudo_labels.json").read_text())
    assert (found["tags"], found["protocol"]["tag_threshold"]) == ("image", None)


def test_all_images_of_the_folder_are_told_of_also_those_of_an_earlier_run(tmp_path, module):
    data, out = Photographs("a", "b", "c"), tmp_path / "out"
    masks_of(data, tmp_path / "masks")
    predict(module, PseudoLabelWriter(str(out)), data)
    whole = {name: (out / name).read_bytes() for name in ("quality.json", "pseudo_labels.json")}
    for name in whole:
        (out / name).unlink()
    (out / "pseudo_labels" / "c.png").unlink()
    assert predict(module, PseudoLabelWriter(str(out)), data) == ["c"]  # a batch of its own both times
    assert {name: (out / name).read_bytes() for name in whole} == whole


def test_quality_names_each_image_with_its_confidence_and_reasons(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path), background_threshold=1.0), Photographs("a", "b"))
    found = json.loads((tmp_path / "quality.json").read_text())
    confidence, reasons = {}, {}
    for entry in found["look_at"]:
        confidence[entry["image_id"]], reasons[entry["image_id"]] = entry["confidence"], entry["reasons"]
    assert found["images"] == found["odd"] == 2
    for image_id in ("a", "b"):
        with np.load(tmp_path / "cams" / f"{image_id}.npz") as arrays:
            assert confidence[image_id] == pytest.approx(float(arrays["confidence"]), abs=1e-4)
            names = [("cat", "dog")[index] for index in arrays["classes"]]
            assert arrays["coverage"].tolist() == [0.0] * len(names)  # nothing exceeds 1
        assert [f"{name} is hardly drawn" for name in names] == [text for text in reasons[image_id] if "hardly" in text]
    assert reasons["b"][0] == "cat is hardly drawn"
    assert found["confidence"]["mean"] == pytest.approx(sum(confidence.values()) / 2, abs=1e-4)


def test_without_masks_there_is_no_score(tmp_path, module):
    predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    assert (tmp_path / "quality.json").exists()
    assert not (tmp_path / "pseudo_labels.json").exists()


def test_mask_of_another_size_is_named_and_the_labels_stay(tmp_path, module):
    data, out = Photographs("a", "b"), tmp_path / "out"
    masks_of(data, tmp_path / "masks", height=31)
    with pytest.raises(DataError, match=r"a\.png: 40 x 32 pixels, but the mask of a has 40 x 31"):
        predict(module, PseudoLabelWriter(str(out)), data)
    assert label_on_disk(out, "b").shape == (32, 40)


def test_missing_mask_is_named_and_not_the_folder_of_results(tmp_path, module):
    data, out = Photographs("a", "b"), tmp_path / "out"
    masks_of(data, tmp_path / "masks")
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DatasetNotFoundError, match=rf"{tmp_path}/masks/a\.png"):
        predict(module, PseudoLabelWriter(str(out)), data)


def test_summary_that_cannot_be_written_names_the_argument(tmp_path, module):
    (tmp_path / "quality.json").mkdir()
    with pytest.raises(OutputError, match=rf"^output_dir='{tmp_path}' cannot be written to"):
        predict(module, PseudoLabelWriter(str(tmp_path)), Photographs("a"))
    assert label_on_disk(tmp_path, "a").shape == (32, 40)
