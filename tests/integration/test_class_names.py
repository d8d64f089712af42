"""Class names are stored with maps and labels, and compared wherever these, or checkpoints, are read back."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from rca_lightning import RCAModule, SegmentationModule, WSSSDataModule
from rca_lightning.cli.main import main
from rca_lightning.data.synthetic.dataset import CLASS_NAMES
from rca_lightning.errors import DataError, OutputError, RCAError
from tests.integration.running import run
from tests.quiet_trainer import quiet_trainer

SWAPPED = [CLASS_NAMES[1], CLASS_NAMES[0], *CLASS_NAMES[2:]]
DIFFERENCE = f"class 1 is '{CLASS_NAMES[0]}' in .*, '{CLASS_NAMES[1]}' in"


@pytest.fixture
def swapped(tmp_path: Path) -> list[str]:
    """The same classes in another order."""
    path = tmp_path / "swapped.txt"
    path.write_text("\n".join(SWAPPED))
    return ["--data.class_file", str(path)]


@pytest.fixture
def labels(config: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """Labels of the training images, by `rca predict`."""
    run("predict", config, "--ckpt_path", checkpoint, "--data.predict_split", "train")
    return tmp_path / "run" / "predictions" / "pseudo_labels"


def forget_names(folder: Path) -> None:
    """As in a folder of an older version."""
    path = folder / "predict.json"
    settings = json.loads(path.read_text())
    assert settings.pop("class_names") == list(CLASS_NAMES)
    path.write_text(json.dumps(settings))


def anew(config: Path, maps: Path, out: Path, *more: str) -> None:
    words = ["--maps", str(maps), "--output_dir", str(out), "--data.predict_split", "train", *more]
    main(["labels", "--config", str(config), *words])


def test_labels_of_maps_of_another_order_are_refused(config: Path, labels: Path, swapped: list[str], tmp_path: Path):
    maps, out = labels.parent / "cams", tmp_path / "out"
    with pytest.raises(DataError, match=f"^class_names: {DIFFERENCE}") as caught:
        anew(config, maps, out, *swapped)
    assert "\n" not in str(caught.value)
    assert not out.exists()
    anew(config, maps, out)
    assert json.loads((out / "predict.json").read_text())["class_names"] == list(CLASS_NAMES)
    # Continued with the other classes, and with maps whose classes are not known.
    forget_names(labels.parent)
    with pytest.raises(OutputError, match=f"class 1: '{CLASS_NAMES[0]}' there, '{CLASS_NAMES[1]}' now"):
        anew(config, maps, out, *swapped)
    anew(config, maps, tmp_path / "unknown", *swapped)


def test_predictions_go_on_in_a_folder_without_names(config: Path, checkpoint: Path, labels: Path):
    forget_names(labels.parent)
    run("predict", config, "--ckpt_path", checkpoint, "--data.predict_split", "train")
    assert json.loads((labels.parent / "predict.json").read_text())["class_names"] == list(CLASS_NAMES)


@pytest.mark.parametrize("argument", ["train_mask_dir", "mask_dir"])
def test_training_labels_of_another_order_are_refused(
    config: Path, labels: Path, swapped: list[str], argument: str, tmp_path: Path
):
    content: dict[str, Any] = yaml.safe_load(config.read_text())["data"]

    def data(class_file: str) -> WSSSDataModule:
        return WSSSDataModule(**content | {"class_file": class_file, argument: str(labels)})

    with pytest.raises(DataError, match=f"^class_names: {DIFFERENCE}") as caught:
        data(swapped[1]).setup("fit")
    assert f"{argument}='{labels}'" in str(caught.value)
    data(content["class_file"]).setup("fit")
    foreign = Path(shutil.copytree(labels, tmp_path / "foreign" / "masks"))
    content |= {argument: str(foreign)}
    WSSSDataModule(**content | {"class_file": swapped[1]}).setup("fit")


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_checkpoint_of_another_order_is_refused(config: Path, checkpoint: Path, swapped: list[str], command: str):
    with pytest.raises(RCAError, match=f"class 1 '{CLASS_NAMES[0]}' in the checkpoint, '{CLASS_NAMES[1]}' in this run"):
        run(command, config, "--ckpt_path", checkpoint, *swapped)


@pytest.mark.parametrize("command", ["validate", "predict"])
def test_segmenter_of_another_order_is_refused(
    segment: Path, segment_checkpoint: Path, swapped: list[str], command: str
):
    with pytest.raises(RCAError, match=f"class 1 '{CLASS_NAMES[0]}' in the checkpoint, '{CLASS_NAMES[1]}' in this run"):
        run(command, segment, "--ckpt_path", segment_checkpoint, *swapped)


@pytest.mark.parametrize("stage", ["fit", "validate", "predict"])
@pytest.mark.parametrize("kind", [RCAModule, SegmentationModule])
def test_module_and_data_of_other_classes_do_not_meet(config: Path, tmp_path: Path, kind: type, stage: str):
    data = WSSSDataModule(**yaml.safe_load(config.read_text())["data"])
    step = getattr(quiet_trainer(tmp_path), stage)
    with pytest.raises(DataError, match=f"class 1 is '{CLASS_NAMES[0]}' in the data, '{CLASS_NAMES[1]}' in the module"):
        step(kind(6, SWAPPED, backbone="resnet14"), datamodule=data)
    with pytest.raises(RCAError, match=r"^num_classes=2: the data has 6 classes"):
        step(kind(2, backbone="resnet14"), datamodule=data)
