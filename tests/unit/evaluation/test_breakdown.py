"""Scores by size, near outlines and against the background, each against a loop or scikit-learn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix
from tests.unit.evaluation.counted_images import (
    CLASSES,
    band,
    confusion,
    count_labels,
    count_seeds,
    drawn,
    label_pairs,
    seed_images,
)

from rca_lightning.evaluation.breakdown import background_confusion, scores_by_size, trimap_miou
from rca_lightning.evaluation.label_iou import LabelIoU


def square_of(side: int, *, size: int = 32, value: int = 1) -> np.ndarray:
    mask = np.zeros((size, size), dtype=np.int64)
    mask[:side, :side] = value
    return mask


def test_scores_by_size_equal_a_loop_over_images_and_classes():
    pairs = [*label_pairs(9), (square_of(5), square_of(4)), (square_of(3, value=2), square_of(5, value=2))]
    inside = {name: {} for name in ("small", "medium", "large")}
    for labels, mask in pairs:
        scored = (mask != 255).sum()
        for value in set(mask[(mask != 255) & (mask != 0)].tolist()):
            share = (mask == value).sum() / scored
            group = "small" if share < 1 / 32 else "medium" if share < 1 / 8 else "large"
            here = (labels == value) & (mask != 255)
            hit, union = (here & (mask == value)).sum(), (here | (mask == value)).sum()
            before = inside[group].setdefault(value, [0, 0, 0])
            inside[group][value] = [before[0] + hit, before[1] + union, before[2] + 1]
    found = scores_by_size(count_labels(pairs), None)
    assert list(found) == ["small", "medium", "large"]
    for name, classes in inside.items():
        assert classes, name  # the images have all sizes
        assert found[name]["miou"] == pytest.approx(np.mean([hit / union for hit, union, _ in classes.values()]))
        assert found[name]["pairs"] == sum(count for *_, count in classes.values())


@pytest.mark.parametrize(("side", "group"), [(5, "small"), (6, "medium"), (11, "medium"), (12, "large")])
def test_bounds_are_a_32nd_and_an_8th_of_the_image(side, group):
    found = scores_by_size(count_labels([(square_of(side), square_of(side))]), None)
    assert {name for name, value in found.items() if value["pairs"]} == {group}
    assert found[group] == {"miou": 1.0, "pairs": 1}
    assert all(math.isnan(value["miou"]) for name, value in found.items() if name != group)


def test_exactly_a_32nd_is_no_longer_small():
    mask = np.zeros((8, 8), dtype=np.int64)
    mask[0, :2] = 1
    assert scores_by_size(count_labels([(mask, mask)]), None)["medium"]["pairs"] == 1


def test_trimap_is_the_metric_with_all_else_void():
    pairs = label_pairs(6, seed=2)
    metric = LabelIoU(CLASSES)
    for labels, mask in pairs:
        metric.update(torch.from_numpy(labels), torch.from_numpy(np.where(band(mask), mask, 255)))
    assert trimap_miou(count_labels(pairs), None) == pytest.approx(metric.compute().miou, abs=1e-12)


def test_trimap_of_seeds_is_that_of_the_labels_they_draw():
    images = seed_images(5)
    for threshold in (0.2, 0.8):
        labels = count_labels([(drawn(maps, threshold), mask.numpy()) for maps, mask in images])
        assert trimap_miou(count_seeds(images), threshold) == pytest.approx(trimap_miou(labels, None), abs=1e-12)


def test_a_mask_without_an_outline_has_no_trimap():
    assert math.isnan(trimap_miou(count_labels([(np.ones((3, 3), dtype=np.int64),) * 2]), None))


def test_background_confusion_equals_scikit_learn():
    pairs = [(np.where(labels == 255, 0, labels), mask) for labels, mask in label_pairs(6)]
    true = np.concatenate([mask[mask != 255] for _, mask in pairs])
    labels = np.concatenate([labels[mask != 255] for labels, mask in pairs])
    found = background_confusion(count_labels(pairs), None)
    of_true = confusion_matrix(true, labels, labels=range(CLASSES + 1), normalize="true")
    of_drawn = confusion_matrix(true, labels, labels=range(CLASSES + 1), normalize="pred")
    np.testing.assert_allclose(found["missed"], [np.nan, *of_true[1:, 0]], atol=1e-12)
    np.testing.assert_allclose(found["background"], [np.nan, *of_drawn[0, 1:]], atol=1e-12)
    others = [of_drawn[1:, 0].sum(), *(1 - of_drawn[0, c] - of_drawn[c, c] for c in range(1, CLASSES + 1))]
    np.testing.assert_allclose(found["others"], others, atol=1e-12)


def test_what_is_not_drawn_is_no_background():
    mask = np.ones((2, 2), dtype=np.int64)
    labels = np.array([[1, 0], [255, 255]])
    found = background_confusion(count_labels([(labels, mask)]), None)
    assert found["missed"][1] == 0.25
    assert (found["background"][1], found["others"][1]) == (0.0, 0.0)
    assert found["others"][0] == 1.0
    assert np.isnan([found["missed"][2], found["background"][2], found["others"][2]]).all()
    assert confusion(labels, mask)[1].tolist() == [1, 1, 0, 0, 2]
