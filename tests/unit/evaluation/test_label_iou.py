"""LabelIoU against the confusion matrix of scikit-learn and a plain loop."""

from __future__ import annotations

import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.metrics import confusion_matrix

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.label_iou import LabelEvaluation, LabelIoU
from rca_lightning.evaluation.report import Scores, print_report, write_report

CLASSES = 4
Pair = tuple[torch.Tensor, torch.Tensor]


def random_pairs(count: int, seed: int, occurring: int = CLASSES) -> list[Pair]:
    generator = torch.Generator().manual_seed(seed)
    pairs = []
    for index in range(count):
        size = (5 + index, 7)
        labels, mask = (torch.randint(0, occurring + 1, size, generator=generator) for _ in range(2))
        labels[torch.rand(size, generator=generator) < 0.15] = 255
        mask[torch.rand(size, generator=generator) < 0.2] = 255
        pairs.append((labels.to(torch.uint8), mask))
    return pairs


def scored(pairs: list[Pair], num_classes: int = CLASSES) -> Scores:
    metric = LabelIoU(num_classes)
    for labels, mask in pairs:
        metric.update(labels, mask)
    return metric.compute()


def looped(pairs: list[Pair], label: int) -> dict[str, float]:
    """IoU, precision and recall of one class, a pixel at a time."""
    hit = true = drawn = 0
    for labels, mask in pairs:
        for found, expected in zip(labels.flatten().tolist(), mask.flatten().tolist(), strict=True):
            if expected != 255:
                hit += found == expected == label
                true += expected == label
                drawn += found == label
    return {"iou": hit / (true + drawn - hit), "precision": hit / drawn, "recall": hit / true}


def test_matrix_equals_that_of_scikit_learn():
    pairs = random_pairs(6, seed=0)
    labels = np.concatenate([pair[0].numpy().ravel() for pair in pairs]).astype(int)
    masks = np.concatenate([pair[1].numpy().ravel() for pair in pairs])
    labels[labels == 255] = CLASSES + 1
    counted = masks != 255
    expected = confusion_matrix(masks[counted], labels[counted], labels=range(CLASSES + 2))
    metric = LabelIoU(CLASSES)
    for pair in pairs:
        metric.update(*pair)
    assert metric.confusion().tolist() == expected[:-1].tolist()  # the last row is of no true class
    assert metric.compute().ignored == pytest.approx(expected[:, -1].sum() / expected.sum())
    assert metric.compute().images == 6


def test_scores_equal_a_plain_loop():
    pairs = random_pairs(5, seed=1)
    found = scored(pairs)
    for label in range(CLASSES + 1):
        for name, value in looped(pairs, label).items():
            assert float(getattr(found, name)[label]) == pytest.approx(value), (name, label)
    assert found.miou == pytest.approx(np.mean([looped(pairs, label)["iou"] for label in range(CLASSES + 1)]))


def test_perfect_labels_score_1():
    pairs = [(mask.to(torch.uint8), mask) for _, mask in random_pairs(3, seed=2)]
    found = scored(pairs)
    assert found.miou == 1.0
    assert found.ignored == 0.0


def test_undrawn_pixels_cost_recall_and_iou_but_no_precision():
    mask = torch.tensor([[0, 0, 1, 1]])
    found = scored([(torch.tensor([[0, 0, 1, 255]]), mask)], num_classes=1)
    assert found.precision.tolist() == [1.0, 1.0]
    assert found.recall.tolist() == [1.0, 0.5]
    assert found.iou.tolist() == [1.0, 0.5]
    assert found.ignored == 0.25


def test_class_that_is_nowhere_does_not_take_part():
    pairs = random_pairs(4, seed=3, occurring=2)
    found = scored(pairs)
    assert torch.isnan(found.iou[3:]).all()
    assert found.miou == pytest.approx(np.mean([looped(pairs, label)["iou"] for label in range(3)]))


def test_void_image_adds_no_pixel_and_reset_forgets():
    metric = LabelIoU(1)
    metric.update(torch.ones(2, 2, dtype=torch.long), torch.full((2, 2), 255))
    empty = metric.compute()
    assert int(metric.confusion().sum()) == 0
    assert math.isnan(empty.miou)
    assert math.isnan(empty.ignored)
    assert empty.images == 1
    metric.update(torch.ones(2, 2, dtype=torch.long), torch.ones(2, 2, dtype=torch.long))
    assert metric.compute().miou == 1.0
    metric.reset()
    assert int(metric.confusion().sum()) == int(metric.images) == 0


@pytest.mark.parametrize("value", [3, 254, -1])
@pytest.mark.parametrize("name", ["preds", "target"])
def test_another_value_is_refused_by_name(name, value):
    good, bad = torch.tensor([[1, 255]]), torch.tensor([[1, value]])
    with pytest.raises(ArgumentError, match=rf"{name}=.*{value}.*0\.\.2 or 255"):
        LabelIoU(2).update(*((bad, good) if name == "preds" else (good, bad)))


def test_probabilities_are_no_labels():
    with pytest.raises(ArgumentError, match=r"preds=.*float32.*integers"):
        LabelIoU(2).update(torch.zeros(1, 2), torch.zeros(1, 2, dtype=torch.long))


@pytest.mark.parametrize("shape", [(4, 3), (1, 3, 4), (3,)])
def test_labels_of_another_size_are_refused(shape):
    with pytest.raises(ArgumentError, match=r"preds=.*\(3, 4\)"):
        LabelIoU(2).update(torch.zeros(shape, dtype=torch.long), torch.zeros(3, 4, dtype=torch.long))


def test_no_class_is_refused():
    with pytest.raises(ArgumentError, match="num_classes=0"):
        LabelIoU(0)


def test_merged_halves_equal_the_whole():
    pairs = random_pairs(5, seed=4)
    whole, first, second = LabelIoU(CLASSES), LabelIoU(CLASSES), LabelIoU(CLASSES)
    for index, pair in enumerate(pairs):
        whole.update(*pair)
        (first if index % 2 else second).update(*pair)
    for name in ("counts", "images"):  # as over ranks
        setattr(first, name, first._reductions[name](torch.stack([getattr(first, name), getattr(second, name)])))
    assert torch.equal(first.compute().iou, whole.compute().iou)
    assert first.compute().images == 5


def test_evaluation_starts_anew():
    evaluation = LabelEvaluation(CLASSES)
    labels, mask = random_pairs(1, seed=5)[0]
    assert evaluation.finish() is None
    tags = torch.ones(1, CLASSES)
    evaluation.update([labels], mask[None], tags)
    assert evaluation.finish().miou == scored([(labels, mask)]).miou
    assert evaluation.last_result.images == evaluation.last_result.mask_classes.masks == 1
    evaluation.update([mask], mask[None], tags)
    assert evaluation.finish().miou == 1.0
    assert evaluation.finish() is None
    assert evaluation.last_result is None


def some_scores(**changes) -> Scores:
    values = {
        "miou": 0.25,
        "iou": torch.tensor([0.5, 0.0, math.nan]),
        "precision": torch.tensor([0.75, math.nan, math.nan]),
        "recall": torch.tensor([1.0, 0.0, math.nan]),
        "ignored": 0.125,
        "images": 7,
    }
    return Scores(**{**values, **changes})


def test_json_has_the_keys_of_seeds_and_the_ignored_share(tmp_path: Path):
    content = some_scores().as_dict(split="train", class_names=["cat", "dog"])
    write_report(content, tmp_path / "labels.json")
    assert json.loads((tmp_path / "labels.json").read_text()) == {
        "split": "train",
        "images": 7,
        "tags": None,
        "threshold": None,
        "miou": 0.25,
        "curve": {},
        "per_class_iou": {"background": 0.5, "cat": 0.0, "dog": None},
        "per_class_precision": {"background": 0.75, "cat": None, "dog": None},
        "per_class_recall": {"background": 1.0, "cat": 0.0, "dog": None},
        "classification_map": None,
        "ignored": 0.125,
    }


def test_nothing_scored_is_null():
    content = some_scores(miou=math.nan, ignored=math.nan).as_dict(
        split="val", class_names=["cat", "dog"], tags="image"
    )
    assert (content["miou"], content["ignored"], content["tags"]) == (None, None, "image")


@pytest.mark.parametrize(("tags", "end"), [(None, "7 images"), ("image", "7 images, true tags")])
def test_table_calls_them_labels_and_knows_no_threshold(tags, end):
    stream = io.StringIO()
    print_report(
        some_scores().as_dict(split="val", class_names=["cat", "dog"], tags=tags), Console(file=stream, width=100)
    )
    words = " ".join(stream.getvalue().split())
    assert f"Labels of split 'val', {end}" in words
    assert "threshold" not in words
    assert "mAP" not in words
    assert max(map(len, stream.getvalue().splitlines())) < 50
    assert stream.getvalue().splitlines()[0] == f"Labels of split 'val', {end}"  # not broken to the width of the table
    assert words.endswith("12.5 % of the pixels have no label")
