"""`rca masks --segmenter` on a few generated photographs: photographs without tags are drawn by what it learns."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rca_lightning
from rca_lightning.cli import fit_segmenter
from rca_lightning.data.images import read_image
from rca_lightning.data.transforms import Pixels, normalise
from rca_lightning.evaluation.protocol import describe_file
from rca_lightning.modules.affinity_module import AffinityModule
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from tests.integration.test_masks_command import FIRST, Folder, KilledError

UNTAGGED = 2


@pytest.fixture
def folder(tmp_path: Path, synthetic_root: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    """Photographs of which the last two have no tags."""
    monkeypatch.setattr(fit_segmenter, "_EPOCHS", 2)
    folder = Folder(tmp_path, synthetic_root)
    for image_id in folder.ids[FIRST : FIRST + UNTAGGED]:
        add_without_tags(folder, image_id)
    return folder


def add_without_tags(folder: Folder, image_id: str) -> None:
    tags = (folder.photographs / "tags.csv").read_text()
    folder.add(image_id)
    (folder.photographs / "tags.csv").write_text(tags)


def label(folder: Folder, image_id: str) -> np.ndarray:
    return np.asarray(Image.open(folder.out / "labels" / f"{image_id}.png"))


def test_draws_photographs_without_tags_and_keeps_the_others(folder: Folder, monkeypatch: pytest.MonkeyPatch, capsys):
    folder.label()
    first = folder.times()
    folder.label("--segmenter")
    times, untagged = folder.times(), folder.ids[FIRST : FIRST + UNTAGGED]
    assert {name for name in times if times[name] != first[name]} == set(untagged)
    assert {"boundaries", "segmenter", "untagged"} <= set(folder.written()["seconds"])
    protocol = folder.written()["protocol"]
    assert protocol["segmenter"] == describe_file(folder.out / "segmenter.ckpt")
    assert (protocol["supervision"]["tags"], protocol["tag_threshold"]) == ("mixed", None)  # no tag is predicted
    module = FrozenSegmentationModule.load_from_checkpoint(folder.out / "segmenter.ckpt", map_location="cpu").eval()
    loaded = rca_lightning.load(folder.out / "segmenter.ckpt", device="cpu")
    for image_id in untagged:
        with torch.no_grad():
            drawn = module.label_images(normalise(Pixels(read_image(folder.file(image_id))))[None])[0].labels
        np.testing.assert_array_equal(label(folder, image_id), drawn.numpy())
        np.testing.assert_array_equal(loaded.predict(folder.file(image_id)).mask, drawn.numpy())
    assert {path.name for path in (folder.out / "labels").iterdir()} == {f"{name}.png" for name in times}

    fits: list[str] = []
    for kind in (AffinityModule, FrozenSegmentationModule):
        monkeypatch.setattr(kind, "on_train_start", lambda self: fits.append(type(self).__name__))
    folder.label("--segmenter")  # nothing is new
    assert (fits, folder.times()) == ([], times)
    new = folder.ids[FIRST + UNTAGGED]
    add_without_tags(folder, new)
    folder.label("--segmenter")
    after = folder.times()
    assert fits == []
    assert {name: after[name] for name in times} == times
    assert new in after
    assert (folder.out / "work" / "segmentation" / "drawn" / "masks" / f"{new}.png").samefile(
        folder.out / "labels" / f"{new}.png"
    )
    capsys.readouterr()
    folder.label("--segmenter", "--seed", "1")
    assert "the segmenter is made anew" in capsys.readouterr().err
    assert fits == ["AffinityModule", "FrozenSegmentationModule"]


@pytest.mark.parametrize("place", ["boundaries", "segmenter", "untagged"])
def test_killed_and_started_again_ends_as_without(folder: Folder, tmp_path, monkeypatch, place):
    folder.label("--segmenter")
    whole = {path.name: path.read_bytes() for path in (folder.out / "labels").glob("*.png")}
    folder.out = tmp_path / "killed"

    def killed(*_, **__):
        raise KilledError

    with monkeypatch.context() as patch:
        if place == "boundaries":

            def in_second(self):
                if self.current_epoch == 1:
                    raise KilledError

            patch.setattr(AffinityModule, "on_train_epoch_start", in_second)
        elif place == "segmenter":
            patch.setattr(FrozenSegmentationModule, "on_train_start", killed)
        else:
            patch.setattr(fit_segmenter, "_put", killed)
        with pytest.raises(KilledError):
            folder.label("--segmenter")
    epochs = []
    monkeypatch.setattr(AffinityModule, "on_train_epoch_start", lambda self: epochs.append(self.current_epoch))
    folder.label("--segmenter")
    assert epochs == ([1] if place == "boundaries" else [])
    assert {path.name: path.read_bytes() for path in (folder.out / "labels").glob("*.png")} == whole


def test_without_it_again_the_first_stage_draws_them(folder: Folder, capsys):
    folder.label()
    first = {path.name: path.read_bytes() for path in (folder.out / "labels").glob("*.png")}
    folder.label("--segmenter")
    capsys.readouterr()
    folder.label()
    assert "without --segmenter" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (folder.out / "labels").glob("*.png")} == first
