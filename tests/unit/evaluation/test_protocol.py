"""What a score says it rests on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
from types import SimpleNamespace

import faiss
import lightning
import numpy
import pytest
import torch
from tests.unit.evaluation.counted_images import NAMES

from rca_lightning import RCAModule, SegmentationModule, __version__
from rca_lightning.evaluation import protocol as protocols
from rca_lightning.evaluation.image_counts import ids_digest
from rca_lightning.evaluation.protocol import (
    describe_file,
    describe_software,
    library_commit,
    make_protocol,
    supervision_used,
    tag_threshold_used,
    tags_used,
)


def protocol(**changes) -> dict:
    settings = {"scales": (1.0, 1.5), "flip": True, "max_side": 640, "final_map": "attention", "lr": 0.1}
    options = {"split": "val", "ids": ["b", "a"], "supervision": {"tags": "image"}, "settings": settings}
    return make_protocol(**(options | {"threshold": "default"} | changes))


def test_views_map_and_images_are_told():
    found = protocol()
    assert found["split"] == {"name": "val", "images": 2, "ids_sha256": ids_digest(["a", "b"])}
    assert (found["scales"], found["flip"], found["max_side"]) == ([1.0, 1.5], True, 640)
    assert (found["final_map"], found["threshold"], found["supervision"]) == ("attention", "default", {"tags": "image"})
    assert (found["checkpoint"], found["weights"], found["crf"], found["refine"]) == (None, None, False, [])
    assert "lr" not in found
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.mark.parametrize(
    ("options", "crf"),
    [({"settings": {"crf": True}}, True), ({"settings": {"crf": False}}, False), ({"refine": ("pamr",)}, False),
     ({"refine": ("affinity", "dense_crf")}, True)],
)  # fmt: skip
def test_a_crf_is_one_wherever_it_acts(options, crf):
    assert protocol(**options)["crf"] is crf
    assert protocol(**options)["refine"] == list(options.get("refine", ()))


def test_a_threshold_chosen_on_masks_names_their_split():
    assert protocol(threshold="masks", threshold_split="train_a")["threshold"] == "masks of train_a"
    assert protocol(threshold="given", threshold_split="train_a")["threshold"] == "given"
    assert protocol(threshold=None)["threshold"] is None


@pytest.mark.parametrize(
    ("threshold", "by_masks"), [("masks", True), ("given", None), ("auto", False), ("default", False)]
)
def test_the_background_says_its_numbers_and_whether_masks_chose_them(threshold, by_masks):
    found = protocol(threshold=threshold, background={"background": "two_thresholds", "low": 0.1, "high": 0.4})
    numbers = dict.fromkeys(("background_threshold", "power", "saliency_threshold"))
    assert found["background"] == {"kind": "two_thresholds", "low": 0.1, "high": 0.4, **numbers, "by_masks": by_masks}
    assert protocol(background={"background_threshold": 0.3})["background"]["kind"] == "fixed"
    assert protocol()["background"] is None  # label images of a network


def test_maps_are_told_by_their_kind_and_propagation():
    settings = {"propagation_steps": 2, "propagation_power": 3.0}
    found = protocol(settings=settings, map_kind="propagated CAM")["maps"]
    assert found == {"kind": "propagated CAM", **settings, "propagation_affinity": None}
    assert protocol(settings=settings)["maps"] is None


@pytest.mark.parametrize(
    ("tags", "given", "calibrated", "expected"),
    [
        ("image", 0.3, True, None),
        (None, None, False, None),
        ("predicted", 0.3, True, {"chosen": "given", "value": 0.3}),
        ("predicted", None, True, {"chosen": "calibrated", "value": None}),
        ("mixed", None, False, {"chosen": "default", "value": 0.5}),
    ],
)
def test_a_threshold_of_tags_is_told_where_tags_are_predicted(tags, given, calibrated, expected):
    assert tag_threshold_used(tags, given=given, calibrated=calibrated, default=0.5) == expected


@pytest.mark.parametrize(
    ("tags", "known", "expected"),
    [("image", [True, False, True], "mixed"), ("image", [False], "predicted"), ("image", [True], "image"),
     ("image", [], "image"), ("predicted", [True, False], "predicted")],
)  # fmt: skip
def test_tags_of_photographs_without_any_are_predicted(tags, known, expected):
    assert tags_used(tags, known) == expected


def test_prompts_of_a_first_stage_are_supervision_of_the_classifier_behind_it():
    assert supervision_used(tags=None, settings={"first_stage": {"num_prompts": 80}})["prompts"] is True
    assert supervision_used(tags=None, settings={"first_stage": {"num_prompts": None}})["prompts"] is False


def test_a_file_is_read_once_until_it_changes(tmp_path, monkeypatch):
    file, read = tmp_path / "last.ckpt", []
    file.write_bytes(b"one")
    monkeypatch.setattr(protocols, "file_sha256", lambda path: read.append(path) or str(len(read)))
    assert [describe_file(file)["sha256"] for _ in range(3)] == ["1", "1", "1"]
    file.write_bytes(b"another")
    assert describe_file(file)["sha256"] == "2"
    assert describe_file(tmp_path / "gone") == {"file": "gone", "sha256": None}


def test_supervision_is_what_was_known_beside_the_pixels():
    nothing = supervision_used(tags=None, settings={})
    assert nothing == {
        "tags": None, "saliency": False, "prompts": False, "proposals": False, "seed_dir": None, "masks": None,
    }  # fmt: skip
    training = {"seed_dir": True, "masks": False}
    found = supervision_used(
        tags="image", settings={"num_prompts": 12}, training=training, saliency=True, proposals=True
    )  # fmt: skip
    assert found == {"tags": "image", "saliency": True, "prompts": True, "proposals": True, **training}


def test_versions_are_those_that_run():
    versions = describe_software()["versions"]
    assert versions["rca_lightning"] == __version__
    assert (versions["lightning"], versions["numpy"]) == (lightning.__version__, numpy.__version__)
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["faiss"].split(".")[:2] == faiss.__version__.split(".")[:2]


def git(*words: str, folder) -> str:
    identity = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    return subprocess.run(
        ["git", "-C", str(folder), *identity, *words], check=True, capture_output=True, text=True
    ).stdout


@pytest.mark.skipif(shutil.which("git") is None, reason="no git")
def test_commit_is_that_of_the_checkout_and_says_when_files_were_changed(tmp_path):
    package = tmp_path / "src" / "rca_lightning"
    package.mkdir(parents=True)
    (package / "code.py").write_text("1")
    assert library_commit(package) is None  # no checkout
    git("init", folder=tmp_path)
    assert library_commit(package) is None  # no commit yet
    git("add", ".", folder=tmp_path)
    git("commit", "-m", "first", folder=tmp_path)
    git("tag", "-a", "v9", "-m", "a tag", folder=tmp_path)
    head = git("rev-parse", "HEAD", folder=tmp_path).strip()
    assert library_commit(package) == head
    (package / "code.py").write_text("2")
    assert library_commit(package) == f"{head}-dirty"
    installed = tmp_path / "venv" / "lib" / "site-packages" / "rca_lightning"
    installed.mkdir(parents=True)
    (tmp_path / "venv" / ".git").mkdir()
    assert library_commit(installed) is None  # the commit would be that of another project


def test_without_git_there_is_no_commit(tmp_path, monkeypatch):
    package = tmp_path / "src" / "rca_lightning"
    (tmp_path / ".git").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert library_commit(package) is None


def test_a_file_is_told_by_its_name_and_digest_without_its_path(tmp_path):
    file = tmp_path / "last.ckpt"
    file.write_bytes(b"weights")
    assert describe_file(file) == {"file": "last.ckpt", "sha256": hashlib.sha256(b"weights").hexdigest()}
    assert describe_file(tmp_path) == {"file": tmp_path.name, "sha256": None}
    assert describe_file(None) is None


@pytest.mark.parametrize("kind", [RCAModule, SegmentationModule])
def test_a_checkpoint_keeps_which_weights_its_training_began_with(kind, tmp_path):
    trained = {"backbone": "resnet14", "class_names": NAMES}
    extra = {"backbone_mode": "trained"} if kind is RCAModule else {}
    first = kind(3, **trained, weights="none", **extra)
    assert first.weights_on_record is None
    file = tmp_path / "imagenet.pth"
    torch.save(first.network.backbone.state_dict(), file)
    module = kind(3, **trained, weights=str(file), **extra)
    record = {"file": "imagenet.pth", "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
    assert module.weights_on_record == record
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = kind(3, **trained, **extra)
    other.on_load_checkpoint(dict(checkpoint))
    assert other.weights_on_record == record
    assert str(tmp_path) not in json.dumps(record)


@pytest.mark.parametrize(
    ("kind", "data", "expected"),
    [
        (RCAModule, {"seed_dir": None, "mask_dir": None, "train_mask_dir": None}, (False, False)),
        (RCAModule, {"seed_dir": "maps", "mask_dir": None, "train_mask_dir": None}, (True, False)),
        (SegmentationModule, {"seed_dir": None, "mask_dir": "masks", "train_mask_dir": "masks"}, (False, True)),
        (SegmentationModule, {"seed_dir": None, "mask_dir": None, "train_mask_dir": "labels"}, (False, False)),
    ],
)
def test_a_checkpoint_keeps_what_its_training_learned_from(kind, data, expected):
    module = kind(3, class_names=NAMES, backbone="resnet14", weights="none")
    assert module.supervision_on_record is None
    module._trainer = SimpleNamespace(datamodule=SimpleNamespace(**data))
    module._record_supervision()
    assert module.supervision_on_record == dict(zip(("seed_dir", "masks"), expected, strict=True))
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    other = kind(3, class_names=NAMES, backbone="resnet14", weights="none")
    other.on_load_checkpoint(dict(checkpoint))
    assert other.supervision_on_record == module.supervision_on_record
    # What a training before has used counts after it goes on with something else.
    other._trainer = SimpleNamespace(datamodule=SimpleNamespace(seed_dir=None, mask_dir=None, train_mask_dir="labels"))
    other._record_supervision()
    assert other.supervision_on_record == module.supervision_on_record


@pytest.mark.parametrize(
    "value", ["text", {"file": "a"}, {"file": 1, "sha256": None}, {"file": "a" * 300, "sha256": ""}]
)
def test_a_strange_record_is_none(value):
    module = RCAModule(3, class_names=NAMES, backbone="resnet14", weights="none")
    checkpoint = {"state_dict": module.state_dict()}
    module.on_save_checkpoint(checkpoint)
    checkpoint["backbone_weights"] = checkpoint["supervision"] = value
    module.on_load_checkpoint(checkpoint)
    assert module.weights_on_record is None
    assert module.supervision_on_record is None
