"""Pseudo labels of stored maps: compared with a loop, skipped where complete, refused in one sentence."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tests.folder_contents import file_bytes

from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, OutputError
from rca_lightning.io.progress import progress_told_to
from rca_lightning.prediction.stored_maps import label_stored_maps, write_confident_labels

CLASSES = ("ant", "bee", "cat")
TAGS = {"a": (0, 2), "b": (1,), "c": ()}
SIZE = (9, 12)  # height and width of the photographs


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder of photographs, tags and masks."""
    folder, generator = tmp_path / "photographs", np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for name in TAGS:
        Image.fromarray(generator.integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(folder / "images" / f"{name}.png")
        Image.fromarray(generator.integers(0, 4, SIZE, dtype=np.uint8)).save(folder / "masks" / f"{name}.png")
    (folder / "classes.txt").write_text("\n".join(CLASSES))
    rows = [f"{name},{';'.join(CLASSES[index] for index in tags)}" for name, tags in TAGS.items()]
    (folder / "tags.csv").write_text("\n".join(["image,tags", *rows]))
    return folder


@pytest.fixture
def maps(tmp_path: Path) -> Path:
    """Maps as `rca predict` stores them, of attention."""
    folder, generator = tmp_path / "predicted" / "cams", np.random.default_rng(1)
    folder.mkdir(parents=True)
    for name, tags in TAGS.items():
        np.savez(
            folder / f"{name}.npz",
            maps=generator.random((len(tags), *SIZE)).astype(np.float16),
            classes=np.array(tags, dtype=np.int64),
            probabilities=np.full(len(tags), 0.75, dtype=np.float32),
        )
    settings = {"class_names": list(CLASSES), "reads_attention": True, "background_threshold": 0.6}
    (folder.parent / "predict.json").write_text(json.dumps(settings))
    return folder


def data(root: Path, **options) -> WSSSDataModule:
    options = {"class_file": "classes.txt", "mask_dir": "masks", "predict_split": "val", "num_workers": 0, **options}
    return WSSSDataModule("folder", str(root), **options)


def read(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)) for path in sorted((folder / "pseudo_labels").iterdir())}


def by_loop(maps: Path, name: str, low: float, high: float) -> np.ndarray:
    """Below `low` background, above `high` the strongest class, undecided between."""
    with np.load(maps / f"{name}.npz") as stored:
        values, classes = stored["maps"].astype(np.float64), stored["classes"]
    label = np.zeros(SIZE, dtype=np.uint8)
    for y in range(SIZE[0]):
        for x in range(SIZE[1]):
            scores = [float(value) for value in values[:, y, x]]
            strongest = max(scores, default=0.0)
            if strongest > high:
                label[y, x] = classes[scores.index(strongest)] + 1
            elif strongest > low:
                label[y, x] = 255
    return label


@pytest.mark.parametrize("workers", [0, 2])
def test_labels_are_those_of_a_loop_at_the_threshold_of_the_prediction(root, maps, tmp_path, workers, capsys):
    label_stored_maps(data(root), str(maps), str(tmp_path / "out"), workers=workers)
    labels = read(tmp_path / "out")
    assert labels.keys() == TAGS.keys()
    for name, label in labels.items():
        np.testing.assert_array_equal(label, by_loop(maps, name, 0.6, 0.6))
    assert len(np.unique(labels["a"])) == 3
    score = json.loads((tmp_path / "out" / "pseudo_labels.json").read_text())
    assert score["images"] == 3
    settings = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert (settings["background_threshold"], settings["reads_attention"]) == (0.6, True)
    assert "Labels of split 'val', 3 images" in capsys.readouterr().out


def protocol_of(folder: Path) -> dict:
    return json.loads((folder / "pseudo_labels.json").read_text())["protocol"]


def tell(maps: Path, **settings) -> None:
    """Adds settings to those that `rca predict` has left."""
    file = maps.parent / "predict.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def test_what_the_maps_say_of_their_network_is_taken_over(root, maps, tmp_path):
    known = {"propagation_steps": 0, "propagation_power": 2.0, "propagation_affinity": "cosine"}
    weights = {"file": "resnet50.pth", "sha256": "1" * 64}
    checkpoint = {"checkpoint": "last.ckpt", "checkpoint_sha256": "2" * 64}
    tell(maps, **known, **checkpoint, map_kind="CAM", weights=weights, predict_tags="predicted", tags_calibrated=True)
    label_stored_maps(data(root), str(maps), str(tmp_path / "out"))
    protocol = protocol_of(tmp_path / "out")
    assert protocol["checkpoint"] == {"file": "last.ckpt", "sha256": "2" * 64}
    assert protocol["weights"] == weights
    assert protocol["maps"] == {"kind": "CAM", **known}
    assert protocol["tag_threshold"] == {"chosen": "calibrated", "value": None}
    settings = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert settings["checkpoint_sha256"] == "2" * 64
    assert (settings["map_kind"], settings["propagation_steps"]) == ("CAM", 0)


def test_what_older_maps_do_not_say_is_not_known(root, maps, tmp_path):
    tell(maps, predict_tags="predicted", checkpoint=3, weights="x")
    label_stored_maps(data(root), str(maps), str(tmp_path / "out"))
    protocol = protocol_of(tmp_path / "out")
    assert (protocol["checkpoint"], protocol["weights"], protocol["tag_threshold"]) == (None, None, None)
    assert protocol["maps"]["kind"] == "unknown"


@pytest.mark.parametrize(
    ("stored", "options", "source"),
    [
        ({"background_threshold": 0.6}, {}, "given"),  # to rca predict
        ({"background_threshold": 0.7}, {}, "default"),
        ({"background_threshold": 0.6, "threshold_chosen": "auto"}, {}, "auto"),
        ({"background_threshold": 0.6, "threshold_chosen": "auto"}, {"background_threshold": 0.4}, "given"),
        ({"background_threshold": 0.6}, {"background": "two_thresholds"}, "default"),
        ({"low": 0.2, "high": 0.8}, {"background": "two_thresholds"}, "given"),
        ({"background_threshold": 0.5, "contrasted": True}, {}, "default"),
        ({"background_threshold": 0.2, "reads_attention": False}, {}, "default"),  # once that of all CAMs
        ({"background_threshold": 0.2, "reads_attention": False, "threshold_source": "given"}, {}, "given"),
        ({"background_threshold": 0.6, "threshold_source": "default"}, {}, "default"),
        ({"background_threshold": 0.6, "threshold_source": ["x"]}, {}, "given"),
        ({"background_threshold": 0.6}, {"background_threshold": "auto"}, "auto"),
    ],
)
def test_a_threshold_of_the_prediction_keeps_how_it_was_chosen(root, maps, tmp_path, stored, options, source):
    tell(maps, **stored)
    label_stored_maps(data(root), str(maps), str(tmp_path / "out"), **options)
    protocol = protocol_of(tmp_path / "out")
    assert protocol["threshold"] == source
    assert protocol["background"]["by_masks"] == (None if source == "given" else False)


def test_two_thresholds_leave_pixels_between_them_undecided(root, maps, tmp_path):
    label_stored_maps(data(root), str(maps), str(tmp_path / "out"), background="two_thresholds", low=0.25, high=0.8)
    for name, label in read(tmp_path / "out").items():
        np.testing.assert_array_equal(label, by_loop(maps, name, 0.25, 0.8))
    assert (read(tmp_path / "out")["b"] == 255).any()


def test_confident_labels_have_the_thresholds_of_their_kind_and_a_refinement(root, maps, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        write_confident_labels(data(root), maps, tmp_path / "out")
    settings = json.loads((tmp_path / "out" / "predict.json").read_text())
    assert (settings["low"], settings["high"]) == (0.5, 0.8)
    (refined,) = settings["refine"]
    assert f"refined by {refined}" in caplog.text
    assert read(tmp_path / "out").keys() == TAGS.keys()


def test_what_is_complete_is_skipped_and_what_is_missing_is_made(root, maps, tmp_path):
    out = tmp_path / "out"
    label_stored_maps(data(root), str(maps), str(out))
    before = file_bytes(out / "pseudo_labels")
    (out / "pseudo_labels" / "b.png").unlink()
    Image.new("L", SIZE[::-1], 3).save(out / "pseudo_labels" / "a.png")
    label_stored_maps(data(root), str(maps), str(out))
    after = file_bytes(out / "pseudo_labels")
    assert [name for name in before if after[name] != before[name]] == ["a.png"]
    label_stored_maps(data(root), str(maps), str(out), existing="overwrite")
    assert file_bytes(out / "pseudo_labels") == before
    with pytest.raises(OutputError, match=r"background_threshold: 0\.6 there, 0\.3 now"):
        label_stored_maps(data(root), str(maps), str(out), background_threshold=0.3)
    assert file_bytes(out / "pseudo_labels") == before


def test_progress_is_of_photographs_then_of_scores(root, maps, tmp_path):
    seen: list[tuple[int, int]] = []
    with progress_told_to(lambda done, total: seen.append((done, total))):
        label_stored_maps(data(root), str(maps), str(tmp_path / "out"))
    assert seen == [(done, 3) for _ in ("labels", "quality", "scores") for done in range(4)]


def test_photographs_that_cannot_be_read_need_no_maps(root, maps, tmp_path):
    (root / "images" / "b.png").write_bytes(b"no picture")
    (maps / "b.npz").unlink()
    label_stored_maps(data(root, on_bad_image="skip", max_bad_images=0.9), str(maps), str(tmp_path / "out"))
    assert read(tmp_path / "out").keys() == {"a", "c"}


def test_what_cannot_be_is_one_sentence_and_leaves_nothing(root, maps, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(DatasetNotFoundError, match="is not a folder; give the folder cams"):
        label_stored_maps(data(root), str(tmp_path / "nowhere"), out)
    with pytest.raises(ArgumentError, match="refine='random_walk': its features are not stored"):
        label_stored_maps(data(root), str(maps), out, refine=["random_walk"])
    with pytest.raises(ArgumentError, match="workers=-1"):
        label_stored_maps(data(root), str(maps), out, workers=-1)
    (maps / "b.npz").rename(tmp_path / "b.npz")
    with pytest.raises(DatasetNotFoundError, match="none for 1 of 3 photographs, such as b"):
        label_stored_maps(data(root), str(maps), out)
    (tmp_path / "b.npz").rename(maps / "b.npz")
    (maps.parent / "predict.json").write_text(json.dumps({"class_names": ["ant", "bee", "dog"]}))
    with pytest.raises(DataError, match="class 3 is 'dog' in the maps"):
        label_stored_maps(data(root), str(maps), out)
    (maps.parent / "predict.json").unlink()
    with pytest.raises(ArgumentError, match=r"background_threshold=None: give one in \[0, 1\]"):
        label_stored_maps(data(root), str(maps), out)
    assert not Path(out).exists()


def test_saliency_is_asked_for_where_the_background_needs_it(root, maps, tmp_path):
    with pytest.raises(DataError, match=r"no saliency map, which background='saliency' needs"):
        label_stored_maps(data(root), str(maps), str(tmp_path / "out"), background="saliency", workers=0)
