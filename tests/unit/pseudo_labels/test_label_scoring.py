"""The score of label files against the masks of a data set, counted a pixel at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rca_lightning.data.coco_shapes import CocoShapes
from rca_lightning.data.records import Record
from rca_lightning.errors import DataError
from rca_lightning.pseudo_labels.summary import score_label_files

CLASSES = 3


def random_label(seed: int, height: int = 6, width: int = 9) -> np.ndarray:
    values = np.random.default_rng(seed).choice([0, 1, 2, 3, 255], (height, width), p=[0.3, 0.3, 0.2, 0.1, 0.1])
    return values.astype(np.uint8)


def save(path: Path, values: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)
    return path


def record(tmp_path: Path, image_id: str, mask: np.ndarray | None) -> Record:
    path = None if mask is None else save(tmp_path / "masks" / f"{image_id}.png", mask)
    return Record(image_id, tmp_path / f"{image_id}.jpg", mask=path)


def looped(pairs: list[tuple[np.ndarray, np.ndarray]], label: int) -> tuple[float, float, float]:
    hit = true = drawn = 0
    for found, expected in pairs:
        for one, other in zip(found.flatten().tolist(), expected.flatten().tolist(), strict=True):
            if other != 255:
                hit += one == other == label
                true += other == label
                drawn += one == label
    return hit / (true + drawn - hit), hit / drawn, hit / true


def test_scores_equal_a_plain_loop_over_the_images_that_have_both(tmp_path):
    pairs = [(random_label(seed), random_label(seed + 10)) for seed in range(3)]
    records = [record(tmp_path, f"photo.{index}", mask) for index, (_, mask) in enumerate(pairs)]
    for index, (label, _) in enumerate(pairs):
        save(tmp_path / "labels" / f"photo.{index}.png", label)
    records.append(record(tmp_path, "no_label", random_label(20)))
    records.append(record(tmp_path, "no_mask", None))
    save(tmp_path / "labels" / "no_mask.png", random_label(21))
    save(tmp_path / "labels" / "of_no_record.png", random_label(22))
    found = score_label_files(tmp_path / "labels", records, num_classes=CLASSES)
    assert found.images == 3
    for label in range(CLASSES + 1):
        values = [float(values[label]) for values in (found.iou, found.precision, found.recall)]
        assert values == pytest.approx(looped(pairs, label))
    assert found.miou == pytest.approx(np.mean([looped(pairs, label)[0] for label in range(CLASSES + 1)]))
    counted = [found[mask != 255] == 255 for found, mask in pairs]
    assert found.ignored == pytest.approx(np.concatenate(counted).mean())


def test_masks_drawn_from_annotated_objects(tmp_path):
    square = [[2.0, 1.0, 6.0, 1.0, 6.0, 5.0, 2.0, 5.0]]
    shapes = CocoShapes.pack([(2, square)], height=6, width=9, where="annotations, image 1")
    label = np.zeros((6, 9), dtype=np.uint8)
    label[1:5, 2:4] = 2  # half of the square
    save(tmp_path / "labels" / "a.png", label)
    found = score_label_files(tmp_path / "labels", [Record("a", tmp_path, mask=shapes)], num_classes=CLASSES)
    assert found.iou[2] == pytest.approx(0.5)
    assert found.precision[2] == 1
    assert found.iou[0] == pytest.approx((54 - 16) / (54 - 8))


def test_nothing_to_compare_is_none(tmp_path):
    records = [record(tmp_path, "a", random_label(0)), record(tmp_path, "b", None)]
    save(tmp_path / "labels" / "b.png", random_label(1))
    assert score_label_files(tmp_path / "labels", records, num_classes=CLASSES) is None
    assert score_label_files(tmp_path / "nowhere", records, num_classes=CLASSES) is None
    assert score_label_files(tmp_path / "labels", [], num_classes=CLASSES) is None


def test_label_of_another_size_is_named(tmp_path):
    path = save(tmp_path / "labels" / "a.png", random_label(0, height=6, width=8))
    with pytest.raises(DataError, match=rf"^{path}: 8 x 6 pixels, but the mask of a has 9 x 6; make"):
        score_label_files(str(tmp_path / "labels"), [record(tmp_path, "a", random_label(1))], num_classes=CLASSES)


@pytest.mark.parametrize("wrong", ["labels", "masks"])
def test_unknown_values_are_named_with_their_file(tmp_path, wrong):
    records = [record(tmp_path, "a", random_label(1))]
    save(tmp_path / "labels" / "a.png", random_label(0))
    path = save(tmp_path / wrong / "a.png", np.full((6, 9), CLASSES + 1, dtype=np.uint8))
    with pytest.raises(DataError, match=rf"^{path}: values \[4\]"):
        score_label_files(tmp_path / "labels", records, num_classes=CLASSES)
