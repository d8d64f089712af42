"""Names of splits: a misspelt one is an error that lists those there are, never all images."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from coco_files import write_coco

from conftest import write_photo
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError

STAGES = {"train_split": "fit", "eval_split": "validate", "predict_split": "predict"}


@pytest.fixture
def folder(tmp_path: Path) -> Callable[..., WSSSDataModule]:
    """Images a and b, both tagged, and a list of each."""

    def make(**arguments: Any) -> WSSSDataModule:
        root = tmp_path / "mine"
        for name in "ab":
            write_photo(root / "images" / f"{name}.jpg")
            (root / f"{name}.txt").write_text(name)
        (root / "classes.txt").write_text("cat")
        (root / "tags.csv").write_text("image,tags\na,cat\nb,cat\n")
        return WSSSDataModule("folder", root, num_workers=0, **arguments)

    return make


def ids(data: WSSSDataModule) -> list[str]:
    return [record.image_id for record in data.predict_records]


@pytest.mark.parametrize("argument", STAGES)
def test_folder_without_lists(folder: Callable[..., WSSSDataModule], argument: str) -> None:
    data = folder(**{argument: "trian"})
    with pytest.raises(
        ArgumentError, match=rf"{argument}='trian': no such split; give one of train, val, test, all, or"
    ):
        data.setup(STAGES[argument])


@pytest.mark.parametrize("name", ["train", "val", "test", "all"])
def test_usual_names_of_a_folder_are_all_images(folder: Callable[..., WSSSDataModule], name: str) -> None:
    data = folder(predict_split=name)
    data.setup("predict")
    assert ids(data) == ["a", "b"]


@pytest.mark.parametrize("argument", STAGES)
def test_folder_with_lists_has_no_split_without_one(folder: Callable[..., WSSSDataModule], argument: str) -> None:
    lists = {"train": "a.txt", "val": "b.txt"}
    data = folder(split_files=lists, **{argument: "test"})
    with pytest.raises(ArgumentError, match=rf"{argument}='test': no such split; give one of train, val, all, or"):
        data.setup(STAGES[argument])


def test_all_is_every_image_beside_lists_too(folder: Callable[..., WSSSDataModule]) -> None:
    data = folder(split_files={"train": "a.txt", "val": "b.txt"}, predict_split="all")
    data.setup("predict")
    assert ids(data) == ["a", "b"]
    data = folder(split_files={"train": "a.txt", "val": "b.txt", "all": "b.txt"}, predict_split="all")
    data.setup("predict")
    assert ids(data) == ["b"]


@pytest.mark.parametrize("dataset", ["folder", "voc2012", "coco2017", "synthetic"])
def test_a_list_that_no_split_asks_for(folder: Callable[..., WSSSDataModule], tmp_path: Path, dataset: str) -> None:
    folder()
    message = (
        r"split_files=\{'trian': .*\}: trian: no split that is asked for \(those are train, val\); correct the name"
    )
    with pytest.raises(ArgumentError, match=message):
        WSSSDataModule(dataset, tmp_path / "mine", split_files={"trian": "a.txt", "val": "b.txt"})


def test_lists_may_wait_for_their_turn(folder: Callable[..., WSSSDataModule]) -> None:
    lists = {f"fold{number}": "a.txt" for number in range(3)}
    data = folder(split_files=lists, train_split="fold0", eval_split="fold1")
    data.setup("predict")
    assert ids(data) == ["a"]
    folder(split_files={"train": "a.txt", "test": "b.txt"})  # a usual name


def test_voc(make_voc: Callable[..., Path]) -> None:
    data = WSSSDataModule("voc2012", make_voc(2), train_split="tset", split_files={"mine": "x.txt"}, eval_split="mine")
    with pytest.raises(
        ArgumentError, match="train_split='tset': no such split; give one of mine, train, val, trainaug,"
    ):
        data.setup("fit")


def test_coco(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", images=3)
    (root / "small.txt").write_text("000000000001")
    lists = {"train_small": "small.txt"}
    data = WSSSDataModule("coco2017", root, split_files=lists, predict_split="train_small")
    data.setup("predict")
    assert ids(data) == ["000000000001"]
    data = WSSSDataModule("coco2017", root, split_files=lists, predict_split="train_smal", eval_split="train_small")
    with pytest.raises(
        ArgumentError, match="predict_split='train_smal': no such split; give one of train, val, train_"
    ):
        data.setup("predict")


def test_one_annotation_file_for_all_splits(tmp_path: Path) -> None:
    root = write_coco(tmp_path / "coco", images=3)
    (root / "small.txt").write_text("000000000001")
    given = {"annotation_file": "annotations/instances_train2017.json", "image_dir": "train2017"}
    data = WSSSDataModule("coco2017", root, split_files={"train": "small.txt"}, **given)
    with pytest.raises(ArgumentError, match="eval_split='val': no such split; give one of train, or its list"):
        data.setup("validate")
    data = WSSSDataModule("coco2017", root, **given)
    data.setup("validate")
    assert len(data.val_dataloader()) == 3
