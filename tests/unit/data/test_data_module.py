"""Arguments of the data module, as Python and the command line see them."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from rca_lightning.data.classes import COCO_CLASSES, VOC_CLASSES
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError


def test_classes_are_known_without_any_file() -> None:
    for dataset, names in (("voc2012", VOC_CLASSES), ("coco2014", COCO_CLASSES), ("coco2017", COCO_CLASSES)):
        data = WSSSDataModule(dataset, "nowhere")
        assert data.class_names == list(names)
        assert data.num_classes == len(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dataset": "voc2013"}, "dataset='voc2013': give one of voc2012, coco2014, "),
        ({"root": None}, "root=None: give the folder of the data set 'voc2012'"),
        ({"batch_size": 0}, "batch_size=0: must be at least 1"),
        ({"num_workers": -1}, "num_workers=-1: must be 0"),
        ({"crop_size": 4}, "crop_size=4"),
        ({"scale": (2.0, 1.0)}, r"scale=\(2\.0, 1\.0\)"),
        ({"color_jitter": 2.0}, r"color_jitter=2\.0"),
        ({"class_file": "c.txt"}, "class_file='c.txt': has no meaning for dataset='voc2012', only for folder"),
        ({"annotation_file": "a.json"}, "annotation_file='a.json': .* only for coco2014, coco2017"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        WSSSDataModule(**{"dataset": "voc2012", "root": "nowhere", **arguments})


def test_loaders_before_setup() -> None:
    data = WSSSDataModule("voc2012", "nowhere")
    for name, stage in (("train", "fit"), ("val", "validate"), ("test", "validate"), ("predict", "predict")):
        with pytest.raises(ArgumentError, match=re.escape(f"call setup('{stage}') before")):
            getattr(data, f"{name}_dataloader")()


def test_setup_reports_a_missing_root() -> None:
    for dataset in ("voc2012", "coco2014", "coco2017"):
        with pytest.raises(DatasetNotFoundError, match="root='nowhere': no such folder"):
            WSSSDataModule(dataset, "nowhere").setup("fit")


def test_unknown_tags_stop_training_but_not_prediction(make_voc: Callable[..., Path]) -> None:
    root = make_voc(3)
    (root / "image_labels.txt").write_text("img_000 cat\n")
    data = WSSSDataModule("voc2012", root, num_workers=0)
    for stage in ("fit", "validate"):
        with pytest.raises(DataError, match="2 of 3 images are without tags: img_001, img_002; give tags_file"):
            data.setup(stage)
    data.setup("predict")
    assert [int(batch["tags"].min()) for batch in data.predict_dataloader()] == [0, -1, -1]


def test_missing_voc_masks(make_voc: Callable[..., Path]) -> None:
    data = WSSSDataModule("voc2012", make_voc(2, masks=False), num_workers=0)
    with pytest.raises(DatasetNotFoundError, match=r"mask_dir='.*SegmentationClass': no such folder"):
        data.setup("validate")
    data.setup("fit")
    assert "mask" not in next(iter(data.val_dataloader()))


def test_setup_of_all_stages(make_voc: Callable[..., Path]) -> None:
    data = WSSSDataModule("voc2012", make_voc(2), num_workers=0, crop_size=32)
    data.setup()
    for name in ("train", "val", "test", "predict"):
        assert next(iter(getattr(data, f"{name}_dataloader")()))["image"].shape[1] == 3


def test_command_line_types_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    parser = ArgumentParser()
    parser.add_class_arguments(WSSSDataModule, "data")
    values = ["--data.dataset=voc2012", "--data.root=x", "--data.split_files={'trainaug': 'a.txt'}"]
    config = parser.parse_args([*values, "--data.scale=[0.5, 1.5]", "--data.pin_memory=null", "--data.flip=false"])
    data = getattr(parser, "instantiate", parser.instantiate_classes)(config).data
    assert data.options.split_files == {"trainaug": "a.txt"}
    assert data.augmentation.scale == (0.5, 1.5)
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    text = capsys.readouterr().out
    arguments = re.findall(r"--data\.(\w+)", text)
    assert len(arguments) > 20
    # Every argument is followed by its own line of documentation, not only by its type.
    for block in re.split(r"\n  --data\.", text)[1:]:
        documented = re.sub(r"\((required|type|default).*", "", block.split("\n", 1)[-1] if "\n" in block else block)
        assert len(documented.split()) > 3, block
