"""The files of one photograph, their order, and what is read back from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.folder_contents import file_names

from rca_lightning.data.visualization import overlay_mask
from rca_lightning.errors import DataError
from rca_lightning.io.output_folder import PredictionFolder
from rca_lightning.pseudo_labels import files as label_files
from rca_lightning.pseudo_labels.files import read_qualities, write_label_files, write_mask_file
from rca_lightning.pseudo_labels.generator import IntermediateLabel, PseudoLabelGenerator
from rca_lightning.rca.inference import ClassMaps

H, W = 8, 12
GENERATOR = PseudoLabelGenerator(background="two_thresholds", low=0.4, high=0.7)
KINDS = {"pseudo_labels": ".png", "cams": ".npz", "overlays": ".jpg"}


def half_made(*classes: int) -> IntermediateLabel:
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(len(classes), H, W, generator=generator)
    seeds = ClassMaps(maps, torch.tensor(classes, dtype=torch.int64), torch.rand(20, generator=generator))
    return GENERATOR.score(seeds, torch.rand(3, H, W, generator=generator))


def write(folder: PredictionFolder, image_id: str, *classes: int, keep_maps: bool = True) -> IntermediateLabel:
    intermediate = half_made(*classes)
    maps = intermediate.scores[0][1:].astype(np.float16) if keep_maps else None
    probabilities = np.linspace(0.25, 0.75, len(classes), dtype=np.float32)
    write_label_files(image_id, intermediate, GENERATOR, maps, probabilities, folder.paths(image_id))
    return intermediate


def label_on_disk(folder: PredictionFolder, image_id: str) -> np.ndarray:
    with Image.open(folder.root / "pseudo_labels" / f"{image_id}.png") as picture:
        assert picture.mode == "P"
        return np.asarray(picture)


def test_label_maps_and_overlay_belong_together(tmp_path):
    folder = PredictionFolder(tmp_path, KINDS)
    intermediate = write(folder, "a.b", 3, 17)
    assert file_names(tmp_path) == ["cams/a.b.npz", "overlays/a.b.jpg", "pseudo_labels/a.b.png"]
    label = label_on_disk(folder, "a.b")
    assert np.array_equal(label, GENERATOR.draw(intermediate).numpy())
    assert {0, 4, 18, 255} == set(np.unique(label))
    with np.load(tmp_path / "cams" / "a.b.npz", allow_pickle=False) as found:
        assert found["size"].tolist() == [H, W]
        assert np.array_equal(found["maps"], intermediate.scores[0][1:].astype(np.float16))
    expected = overlay_mask((intermediate.picture.transpose(1, 2, 0) * 255).round().astype(np.uint8), label)
    with Image.open(tmp_path / "overlays" / "a.b.jpg") as picture:
        found = np.asarray(picture).astype(float)
    # Random pixels are hard for JPEG; its colours are right on the average of 4 x 4.
    coarse = [values.reshape(2, 4, 3, 4, 3).mean((1, 3)) for values in (found, expected.astype(float))]
    assert np.abs(coarse[0] - coarse[1]).max() < 12


def test_maps_stored_elsewhere_are_not_written_again(tmp_path):
    folder = PredictionFolder(tmp_path, {"pseudo_labels": ".png", "quality": ".npz"})
    write(folder, "a", 3, 17, keep_maps=False)
    assert file_names(tmp_path) == ["pseudo_labels/a.png", "quality/a.npz"]
    with np.load(tmp_path / "quality" / "a.npz", allow_pickle=False) as found:
        assert "maps" not in found
        assert found["classes"].tolist() == [3, 17]


def test_the_label_comes_last_and_an_image_without_it_is_incomplete(tmp_path, monkeypatch):
    folder = PredictionFolder(tmp_path, KINDS)

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(label_files, "write_mask_file", killed)
    with pytest.raises(KeyboardInterrupt):
        write(folder, "a", 3)
    assert file_names(tmp_path) == ["cams/a.npz", "overlays/a.jpg"]
    assert not folder.is_complete("a")
    assert folder.complete_ids() == []
    monkeypatch.undo()
    write(folder, "a", 3)
    assert folder.complete_ids() == ["a"]


def test_quality_is_read_as_it_was_noted(tmp_path):
    folder = PredictionFolder(tmp_path, KINDS)
    for image_id, classes in (("one", (3,)), ("two", (17, 5)), ("none", ())):
        write(folder, image_id, *classes)
    files = [(image_id, folder.paths(image_id)["cams"]) for image_id in ("two", "none", "one")]
    two, none, one = read_qualities(iter(files))
    assert [found.image_id for found in (two, none, one)] == ["two", "none", "one"]
    label = label_on_disk(folder, "two")
    assert two.classes == (17, 5)
    assert two.coverage == pytest.approx([(label == 18).mean(), (label == 6).mean()])
    assert two.probabilities == (0.25, 0.75)
    assert two.ignored == pytest.approx((label == 255).mean())
    assert 0 < two.ignored < 1
    evidence = half_made(17, 5).scores[1]  # of the higher threshold
    shares = evidence / evidence.sum(0)
    expected = [shares[index][label == value].mean() for index, value in enumerate((0, 18, 6))]
    assert two.confidence == pytest.approx(np.mean(expected), rel=1e-5)
    assert none.confidence == 0
    assert (none.classes, none.coverage, none.probabilities, none.ignored) == ((), (), (), 0.0)
    assert all(type(value) is float for value in (one.confidence, one.ignored, *one.coverage))


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_files_without_a_quality_are_named(tmp_path, damage):
    path = tmp_path / "a.npz"
    np.savez(path, maps=np.zeros((1, 2, 2)))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(DataError, match=r"a\.npz: no quality could be read .*; delete it and predict again"):
        read_qualities([("a", path)])


def test_masks_keep_their_numbers(tmp_path: Path):
    label = torch.arange(256, dtype=torch.uint8).reshape(8, 32)
    write_mask_file(label, tmp_path / "deep" / "mask.png")
    with Image.open(tmp_path / "deep" / "mask.png") as picture:
        assert np.array_equal(np.asarray(picture), label.numpy())
        assert picture.getpalette()[3:6] == [128, 0, 0]
    assert file_names(tmp_path) == ["deep/mask.png"]
