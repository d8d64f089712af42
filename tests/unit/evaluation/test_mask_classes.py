"""Classes that the masks of a split never show are named, with the remedy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rca_lightning.data.records import Record
from rca_lightning.evaluation import mask_classes
from rca_lightning.evaluation.mask_classes import MaskClassCounts, MaskClasses, sample_mask_classes

NAMES = ["cat", "dog", "cow"]


def counted(*pairs: tuple[list[int], list[int]], num_classes: int = 3) -> MaskClassCounts:
    """Counts of images given by the values of their masks and their class indices."""
    metric = MaskClasses(num_classes)
    for values, tags in pairs:
        metric.update(torch.tensor([values]), torch.tensor([float(index in tags) for index in range(num_classes)]))
    return metric.compute()


def test_sound_masks_are_no_reason_to_warn():
    assert counted(([0, 1, 2, 255], [0, 1]), ([0, 3], [2]), ([0, 0], [1])).warnings(NAMES) == []


def test_masks_of_0_and_255_say_how_to_draw_the_class():
    (line,) = counted(([0, 255], [0]), ([0, 0], [0]), num_classes=1).warnings(["crack"])
    assert line == (
        "class crack: in the tags of images, but in none of 2 masks; the masks hold only 0 and 255, which is void: "
        "draw the classes as 1"
    )
    (line,) = counted(([0, 255], [0, 1, 2])).warnings(NAMES)
    assert "class cat, dog, cow" in line
    assert line.endswith("draw the classes as 1, 2, ...")


def test_empty_masks_are_not_taken_for_binary_ones():
    (line,) = counted(([0, 0], [0]), num_classes=1).warnings(["crack"])
    assert "255" not in line


def test_masks_of_another_class_order_are_told():
    (line,) = counted(([1], [1]), ([2], [0]), ([3], [2])).warnings(NAMES)
    assert line.startswith("class cat, dog: in the tags of images, but only in masks of others; compare the values")


def test_absent_classes_are_told_apart_from_those_that_are_tagged():
    first, second = counted(([1, 0], [0, 1])).warnings(NAMES)
    assert first.startswith("class dog: in the tags of images, but in none of 1 masks")
    assert second == "class cow: in no mask and no tags, so it has no score"


def test_unknown_tags_are_no_tags():
    metric = MaskClasses(1)
    metric.update(torch.tensor([[0, 1]]), torch.tensor([-1.0]))
    assert metric.compute().tagged == [0]
    assert metric.compute().warnings(["crack"]) == []


def test_many_classes_are_not_all_named():
    names = [f"kind {index}" for index in range(40)]
    (line,) = counted(([0], []), num_classes=40).warnings(names)
    assert "kind 4, ... (40 in all)" in line
    assert "kind 5" not in line


def test_ranks_add_up():
    pairs = [([0, 1], [0]), ([2, 255], [0, 1]), ([0, 0], [2])]
    whole, parts = MaskClasses(3), [MaskClasses(3), MaskClasses(3)]
    for index, (values, tags) in enumerate(pairs):
        for metric in (whole, parts[index % 2]):
            metric.update(torch.tensor([values]), torch.tensor([float(one in tags) for one in range(3)]))
    for name in ("counts", "masks"):
        setattr(parts[0], name, parts[0]._reductions[name](torch.stack([getattr(part, name) for part in parts])))
    assert parts[0].compute() == whole.compute()


def written(folder: Path, masks: list[tuple[list[int], tuple[int, ...]]]) -> list[Record]:
    records = []
    for number, (values, tags) in enumerate(masks):
        path = folder / f"{number}.png"
        Image.fromarray(np.array([values], dtype=np.uint8)).save(path)
        records.append(Record(str(number), path, tags=tags, mask=path))
    return records


def test_training_masks_are_read_until_every_class_was_found(tmp_path, monkeypatch: pytest.MonkeyPatch):
    records = written(tmp_path, [([0, 1], (0,)), ([0, 0], (0, 1)), ([2, 0], (1,))] + [([0, 1], (0, 1))] * 50)
    read = []
    load = mask_classes.load_mask
    monkeypatch.setattr(mask_classes, "load_mask", lambda record, **names: read.append(record) or load(record, **names))
    assert sample_mask_classes(records, 2).warnings(["cat", "dog"]) == []
    assert [record.image_id for record in read] == ["0", "1", "2"]


def test_training_without_a_pixel_of_a_class_is_told_after_so_many_masks(tmp_path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(mask_classes, "_MASKS_READ", 5)
    records = written(tmp_path, [([0, 1], (0,))] + [([0, 1], (0, 1))] * 20)
    found = sample_mask_classes(records, 3)
    assert found.masks == 6
    assert (found.tagged, found.drawn) == ([21, 20, 0], [6, 0, 0])
    dog, cow = found.warnings(NAMES)
    assert dog.startswith("class dog: in the tags of images, but in none of 6 masks")
    assert cow == "class cow: in no tags, so it is not learned"


def test_training_masks_that_cannot_be_read_are_left_to_the_training(tmp_path):
    records = written(tmp_path, [([0, 1], (0,)), ([0, 1], (0,))])
    records[0].mask.write_bytes(b"not a picture")
    records.append(Record("none", tmp_path / "none.jpg", tags=(0,)))
    found = sample_mask_classes(records, 1)
    assert (found.masks, found.warnings(["cat"])) == (1, [])
