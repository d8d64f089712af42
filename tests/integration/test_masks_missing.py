"""Masks that lack a class are told of, and a validation without any mask is skipped, in one line each."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

from rca_lightning.cli.main import main
from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from rca_lightning.errors import RCAError
from tests.integration.running import run

BINARY = "in none of {} masks; the masks hold only 0 and 255, which is void: draw the classes as 1, 2, ..."


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]


@pytest.fixture
def binary(tmp_path: Path, synthetic_root: Path) -> Path:
    """Masks of the generated images as 0 and 255."""
    folder = tmp_path / "binary"
    folder.mkdir()
    for path in (synthetic_root / "SegmentationClass").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where(mask == 0, 0, 255).astype(np.uint8)).save(folder / path.name)
    return folder


def changed(config: Path, **parts: dict[str, Any]) -> Path:
    content = yaml.safe_load(config.read_text())
    for name, values in parts.items():
        content[name] |= values
    config.write_text(yaml.safe_dump(content))
    return config


def test_binary_masks_are_told_of_once_in_training_and_once_in_its_validations(
    segment: Path, binary: Path, caplog: pytest.LogCaptureFixture
):
    changed(segment, data={"mask_dir": str(binary), "train_mask_dir": str(binary)}, model={"backbone": "resnet14"})
    run("fit", segment)
    lines = [line for line in warned(caplog) if "masks hold only" in line]
    assert [line.split(":")[0] for line in lines] == ["training", "validation"]
    assert lines[0].endswith(BINARY.format(24))
    assert lines[1].endswith(BINARY.format(6))


def test_binary_masks_are_told_of_in_the_scores_of_seeds_and_of_labels(
    config: Path, checkpoint: Path, binary: Path, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    given = ["--ckpt_path", checkpoint, "--data.mask_dir", binary]
    for command, begin in (("validate", "validation: class "), ("predict", "class ")):
        caplog.clear()
        run(command, config, *given)
        (line,) = [line for line in warned(caplog) if "masks hold only" in line]
        assert line.startswith(begin)
        assert line.endswith(BINARY.format(6))
    caplog.clear()
    maps = tmp_path / "run" / "predictions" / "cams"
    words = ["--maps", str(maps), "--output_dir", str(tmp_path / "anew"), "--data.mask_dir", str(binary)]
    main(["labels", "--config", str(config), *words])
    assert [line for line in warned(caplog) if line.endswith(BINARY.format(6))]


def test_sound_masks_are_not_warned_of(config: Path, checkpoint: Path, caplog: pytest.LogCaptureFixture):
    run("validate", config, "--ckpt_path", checkpoint, "--data.eval_split", "train")
    assert not [line for line in warned(caplog) if "class" in line]


@pytest.fixture
def without_masks(config: Path, tmp_path: Path) -> Path:
    """None of the images has a mask."""
    (tmp_path / "no_masks").mkdir()
    return changed(
        config,
        data={"mask_dir": str(tmp_path / "no_masks"), "train_masks": False},
        model={"backbone": "resnet14"},
        trainer={"num_sanity_val_steps": 2, "limit_train_batches": 1},
    )


def test_fit_skips_a_validation_without_masks_and_says_so_once(
    without_masks: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    changed(without_masks, trainer={"callbacks": [
        {"class_path": "rca_lightning.PanelCallback", "init_args": {"images": 2}},
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
         "init_args": {"dirpath": str(tmp_path / "run"), "save_last": True}},
    ]})  # fmt: skip
    cli = run("fit", without_masks)
    assert cli.trainer.current_epoch == 2
    assert (tmp_path / "run" / "last.ckpt").is_file()
    said = [line for line in warned(caplog) if "mask" in line]
    assert said == ["split 'val': 6 of 6 images have no mask, so validation is skipped"]
    assert not cli.trainer.fit_loop.epoch_loop.val_loop._has_run
    # Panels need no masks.
    assert sorted(path.name for path in (tmp_path / "run" / "panels").iterdir()) == ["epoch-000.png", "epoch-001.png"]


@pytest.mark.parametrize("words", [[], ["--trainer.limit_val_batches", "0"]])
@pytest.mark.parametrize(
    "name", ["lightning.pytorch.callbacks.ModelCheckpoint", "lightning.pytorch.callbacks.EarlyStopping"]
)
def test_monitor_of_a_validation_that_is_skipped_is_one_line_before_training(
    without_masks: Path, name: str, words: list[str], tmp_path: Path
):
    monitor = "val/miou_true_tags"
    changed(
        without_masks, trainer={"callbacks": [{"class_path": name, "init_args": {"monitor": monitor, "mode": "max"}}]}
    )
    with pytest.raises(RCAError) as caught:
        run("fit", without_masks, *words)
    short = name.rpartition(".")[2]
    assert str(caught.value).startswith(
        f"{short}.monitor='{monitor}': nothing in this run logs it (nothing is validated"
    )
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_validate_without_masks_is_one_line(without_masks: Path, checkpoint: Path):
    with pytest.raises(RCAError, match=r"6 of 6 images are without a mask.*scores need masks") as caught:
        run("validate", without_masks, "--ckpt_path", checkpoint)
    assert "\n" not in str(caught.value)


def test_masks_in_another_class_order_are_told_of(
    config: Path, checkpoint: Path, tmp_path: Path, synthetic_root: Path, caplog: pytest.LogCaptureFixture
):
    folder = tmp_path / "shifted"
    folder.mkdir()
    for path in (synthetic_root / "SegmentationClass").iterdir():
        mask = np.asarray(Image.open(path))
        Image.fromarray(np.where((mask > 0) & (mask < 255), mask % len(CLASS_NAMES) + 1, mask)).save(folder / path.name)
    run("validate", config, "--ckpt_path", checkpoint, "--data.mask_dir", folder)
    assert [line for line in warned(caplog) if "compare the values of the masks" in line]
