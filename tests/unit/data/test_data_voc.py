"""PASCAL VOC layout, on generated trees and on real photographs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.data.classes import VOC_CLASSES, ClassIndex
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.tag_files import read_tag_file
from rca_lightning.data.voc import VOCSource, read_xml_tags
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError

MakeVOC = Callable[..., Path]


def write_xml(root: Path, image_id: str, *names: str) -> None:
    (root / "Annotations").mkdir(exist_ok=True)
    objects = "".join(f"<object><name>{name}</name></object>" for name in names)
    (root / "Annotations" / f"{image_id}.xml").write_text(f"<annotation>{objects}</annotation>")


def tags_of(source: VOCSource) -> list[tuple[int, ...] | None]:
    return [record.tags for record in source.records("train", with_masks=True)]


def test_root_may_be_the_devkit(make_voc: MakeVOC) -> None:
    root = make_voc(2)
    devkit = root.parent / "VOCdevkit"
    devkit.mkdir()
    root.rename(devkit / "VOC2012")
    for given in (devkit, devkit / "VOC2012", devkit.parent):
        assert VOCSource(given).root == devkit / "VOC2012"


def test_tags_by_file_then_xml_then_labels(make_voc: MakeVOC, tmp_path: Path) -> None:
    root = make_voc(3)
    assert tags_of(VOCSource(root)) == [(0,), (1,), (2,)]
    write_xml(root, "img_001", "person", "cat", "person")
    assert tags_of(VOCSource(root)) == [(0,), (7, 14), (2,)]
    (tmp_path / "mine.txt").write_text("img_002 sofa\n")
    assert tags_of(VOCSource(root, tags_file=str(tmp_path / "mine.txt"))) == [None, (7, 14), (17,)]


def test_missing_parts_name_the_remedy(make_voc: MakeVOC, tmp_path: Path) -> None:
    with pytest.raises(DatasetNotFoundError, match=r"root='.*nowhere': no such folder; give the folder.*JPEGImages"):
        VOCSource(tmp_path / "nowhere")
    with pytest.raises(DatasetNotFoundError, match=r"no folder JPEGImages in it; give the folder"):
        VOCSource(tmp_path)
    source = VOCSource(make_voc(2))
    with pytest.raises(DatasetNotFoundError, match=r"no list for the split 'tset' \(there: train, val\)"):
        source.records("tset", with_masks=False)
    with pytest.raises(ArgumentError, match=r"split_files=\{\}: the ids of trainaug.*split_files=\{'trainaug'"):
        source.records("trainaug", with_masks=False)


def test_trainaug_from_a_list_of_the_user(make_voc: MakeVOC, tmp_path: Path) -> None:
    root = make_voc(3)
    (tmp_path / "aug.txt").write_text("/JPEGImages/img_002.jpg /SegmentationClassAug/img_002.png\n")
    source = VOCSource(root, split_files={"trainaug": str(tmp_path / "aug.txt")})
    assert [record.image_id for record in source.records("trainaug", with_masks=False)] == ["img_002"]


def test_tags_of_images_that_are_not_there_are_counted(
    make_voc: MakeVOC, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "mine.txt").write_text("img_000 sofa\nIMG_001 cat\n")
    VOCSource(make_voc(2), tags_file=str(tmp_path / "mine.txt"))
    assert "1 of its 2 images are not in" in caplog.text
    assert "so their tags are not used: IMG_001" in caplog.text


def test_split_naming_absent_images_lists_them(make_voc: MakeVOC) -> None:
    root = make_voc(6)
    for number in (1, 2, 4, 5):
        (root / "JPEGImages" / f"img_{number:03d}.jpg").unlink()
    with pytest.raises(DataError, match=r"4 of its 6 images .* img_001, img_002, img_004, \.\.\. \(4 in all\)"):
        VOCSource(root).records("train", with_masks=False)


def test_list_cannot_leave_the_root(make_voc: MakeVOC) -> None:
    root = make_voc(1)
    (root / "ImageSets" / "Segmentation" / "train.txt").write_text("../../secret\n")
    with pytest.raises(DataError, match="plain file name"):
        VOCSource(root).records("train", with_masks=False)


def test_real_photographs(shared_root: Path) -> None:
    root = shared_root / "data" / "voc2012_mini"
    data = WSSSDataModule("voc2012", root, num_workers=0, saliency_dir="Saliency")
    data.setup("fit")
    source = VOCSource(root)
    train, val = (source.records(split, with_masks=True) for split in ("train", "val"))
    assert (len(train), len(val)) == (663, 321)
    assert len(data.train_dataloader().dataset) == 663
    assert len(data.val_dataloader().dataset) == 321
    assert sum(record.saliency is not None for record in data.train_dataloader().dataset.records) == 311
    assert len(source._annotations) == 632


def test_real_xml_tags_equal_the_label_list(shared_root: Path) -> None:
    root = shared_root / "data" / "voc2012_mini"
    classes = ClassIndex(VOC_CLASSES)
    listed = read_tag_file(root / "image_labels.txt", classes)
    files = sorted((root / "Annotations").glob("*.xml"))
    assert len(files) == 632
    assert {file.stem: read_xml_tags(file, classes) for file in files} == {f.stem: listed[f.stem] for f in files}


def test_real_masks_show_the_classes_of_the_tags(shared_root: Path) -> None:
    data = WSSSDataModule("voc2012", shared_root / "data" / "voc2012_mini", num_workers=0)
    data.setup("validate")
    dataset = data.val_dataloader().dataset
    for index in range(0, 321, 8):
        sample = dataset[index]
        shown = sorted(set(sample["mask"].unique().tolist()) - {0, 255})
        assert shown == [number + 1 for number in torch.nonzero(sample["tags"]).flatten().tolist()]
        width, height = Image.open(dataset.records[index].image).size
        assert sample["original_size"].tolist() == [height, width]
        assert sample["image"].shape == (3, height, width)
        assert sample["mask"].shape == (height, width)
        official = np.array(Image.open(dataset.records[index].mask))
        np.testing.assert_array_equal(sample["mask"].numpy(), official)
