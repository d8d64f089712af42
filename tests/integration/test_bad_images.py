"""Runs of the command line over photographs that are cut short: `on_bad_image` says what becomes of them."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.data.bad_images import FILE_NAME
from rca_lightning.errors import DataError, DatasetNotFoundError
from tests.integration.running import fit

SKIP = ["--data.on_bad_image", "skip", "--data.max_bad_images", "0.5"]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:600])


def listed(folder: Path) -> list[tuple[str, str]]:
    with (folder / FILE_NAME).open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["split", "image", "reason"]
    assert all("cut off or damaged" in row[2] or "is 5 x 4 pixels, but its image" in row[2] for row in rows[1:])
    return sorted((split, image) for split, image, _ in rows[1:])


@pytest.fixture
def bad_config(config: Path, tmp_path: Path) -> Path:
    """Of 24 training images two are cut; of 6 validation images one is cut, and one has a mask of another size."""
    content = yaml.safe_load(config.read_text())
    root = tmp_path / "bad"
    shutil.copytree(content["data"]["root"], root)
    content["data"] |= {"root": str(root), "crop_size": 48}
    content["model"]["backbone"] = "resnet14"
    for name in ("train_00003", "train_00004", "val_00002"):
        cut(root / "JPEGImages" / f"{name}.jpg")
    Image.new("L", (5, 4)).save(root / "SegmentationClass" / "val_00004.png")
    path = tmp_path / "bad.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("workers", [0, 2])
def test_fit_validate_and_predict_go_on_with_the_others(bad_config: Path, tmp_path: Path, workers: int):
    content = yaml.safe_load(bad_config.read_text())
    content["trainer"]["check_val_every_n_epoch"] = 2  # the panel of the first epoch reads images of its own
    content["trainer"]["callbacks"].append({"class_path": "rca_lightning.PanelCallback"})
    bad_config.write_text(yaml.safe_dump(content))
    words = ["--config", str(bad_config), "--data.num_workers", str(workers), *SKIP]
    fitted = main(["fit", *words])
    assert len(list((tmp_path / "run").rglob("epoch-*.png"))) == 2
    assert fitted.trainer.global_step == 2 * 3  # as many batches as 24 sound images give
    assert listed(tmp_path / "run") == [
        *(("train", "train_00003"), ("train", "train_00004"), ("val", "val_00002"), ("val", "val_00004"))
    ]
    last = ["--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    validated = main(["validate", *words, *last])
    assert validated.model.evaluation.last_result.images == 4
    main(["predict", *words, *last, "--data.eval_batch_size", "4"])
    assert listed(tmp_path / "run")[2:] == [("val", "val_00002"), ("val", "val_00004")]
    written = sorted(path.stem for path in (tmp_path / "run" / "predictions" / "pseudo_labels").glob("*.png"))
    assert written == ["val_00000", "val_00001", "val_00003", "val_00005"]

    again = ["--maps", str(tmp_path / "run" / "predictions" / "cams"), "--output_dir", str(tmp_path / "again")]
    main(["labels", "--config", str(bad_config), *SKIP, *again])
    assert listed(tmp_path / "again") == [("val", "val_00002"), ("val", "val_00004")]
    assert sorted(path.stem for path in (tmp_path / "again" / "pseudo_labels").glob("*.png")) == written
    with pytest.raises(DatasetNotFoundError, match="none for 2 of 6 photographs, such as val_00002"):
        main(["labels", "--config", str(bad_config), *again])


def test_weights_do_not_depend_on_workers_nor_on_a_stop(bad_config: Path, tmp_path: Path):
    whole = fit(bad_config, "whole", *SKIP).model.state_dict()
    fit(bad_config, "stopped", *SKIP, "--data.num_workers", "2", stop_after=1)
    last = tmp_path / "stopped" / "last.ckpt"
    resumed = fit(bad_config, "resumed", *SKIP, "--ckpt_path", last).model.state_dict()
    for name, expected in whole.items():
        assert torch.equal(expected, resumed[name]), name


def test_too_many_end_the_run(bad_config: Path, tmp_path: Path):
    words = ["fit", "--config", str(bad_config), "--trainer.limit_val_batches=0", "--data.on_bad_image", "skip"]
    with pytest.raises(DataError, match=r"split 'train': 2 of 24 images .* max_bad_images=0.01 allows 1: .*/bad_im"):
        main(words)
    assert len(listed(tmp_path / "run")) == 2


def test_without_the_argument_the_first_ends_the_run(bad_config: Path, tmp_path: Path):
    with pytest.raises(DataError, match="cut off or damaged"):
        main(["fit", "--config", str(bad_config), "--trainer.limit_val_batches=0"])
    assert not (tmp_path / "run" / FILE_NAME).exists()


def test_segmentation_goes_on_with_the_others(bad_config: Path, tmp_path: Path):
    content = yaml.safe_load(bad_config.read_text())
    content["task"], content["model"] = "segment", {"backbone": "resnet14", "lr": 0.01}
    content["trainer"]["max_epochs"] = 1
    del content["memory"]
    bad_config.write_text(yaml.safe_dump(content))
    words = ["--config", str(bad_config), *SKIP]
    main(["fit", *words])
    last = ["--ckpt_path", str(tmp_path / "run" / "last.ckpt")]
    assert main(["validate", *words, *last]).model.evaluation.last_result.images == 4
    main(["predict", *words, *last])
    assert len(list((tmp_path / "run" / "predictions" / "masks").glob("*.png"))) == 4
