"""SeedIoU against confusion matrices of scikit-learn, one threshold at a time."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.report import Scores
from rca_lightning.evaluation.seed_iou import DEFAULT_THRESHOLDS, SeedIoU
from rca_lightning.pseudo_labels.labels import threshold_background

CLASSES = 4
Images = list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]


def random_images(count: int, seed: int, *, classes: int = CLASSES, occurring: int = CLASSES) -> Images:
    generator = torch.Generator().manual_seed(seed)
    images: Images = []
    for index in range(count):
        kept = torch.randperm(occurring, generator=generator)[: 1 + index % occurring].sort().values
        size = (5 + index, 7)
        # On a grid that hits thresholds exactly: a pixel just at the threshold is background.
        maps = torch.randint(0, 21, (len(kept), *size), generator=generator) * 0.05
        mask = torch.randint(0, occurring + 1, size, generator=generator)
        mask[torch.rand(size, generator=generator) < 0.2] = 255
        images.append((maps, mask, kept))
    return images


def reference(images: Images, threshold: float, classes: int = CLASSES) -> dict[str, np.ndarray | float]:
    truth, drawn = [], []
    for maps, mask, kept in images:
        for row in range(mask.shape[0]):
            for column in range(mask.shape[1]):
                if int(mask[row, column]) == 255:
                    continue
                values = [float(value) for value in maps[:, row, column]]
                best = max(range(len(values)), key=values.__getitem__) if values else 0
                above = bool(values) and values[best] > np.float32(threshold)
                truth.append(int(mask[row, column]))
                drawn.append(int(kept[best]) + 1 if above else 0)
    matrix = confusion_matrix(truth, drawn, labels=range(classes + 1)).astype(float)
    hit = np.diag(matrix)
    with np.errstate(invalid="ignore", divide="ignore"):
        iou = hit / (matrix.sum(0) + matrix.sum(1) - hit)
        precision, recall = hit / matrix.sum(0), hit / matrix.sum(1)
    return {"miou": float(np.nanmean(iou)), "iou": iou, "precision": precision, "recall": recall}


def scored(images: Images, **options) -> Scores:
    metric = SeedIoU(options.pop("num_classes", CLASSES), **options)
    for maps, mask, kept in images:
        metric.update(maps, mask, kept)
    return metric.compute()


@pytest.mark.parametrize("threshold", [0.0, 0.05, 0.2, 0.35, 0.95, 1.0])
def test_fixed_threshold_equals_one_confusion_matrix(threshold):
    images = random_images(6, seed=0)
    found, expected = scored(images, fixed_threshold=threshold), reference(images, threshold)
    assert found.threshold == threshold
    assert found.miou == pytest.approx(expected["miou"], abs=1e-12)
    for name in ("iou", "precision", "recall"):
        np.testing.assert_allclose(getattr(found, name).numpy(), expected[name], atol=1e-12)


def test_curve_has_every_threshold_and_its_best_is_reported():
    images = random_images(5, seed=1)
    found = scored(images)
    assert tuple(found.curve) == DEFAULT_THRESHOLDS == tuple(round(0.05 * k, 2) for k in range(1, 20))
    expected = {threshold: reference(images, threshold)["miou"] for threshold in DEFAULT_THRESHOLDS}
    assert found.curve == pytest.approx(expected)
    best = max(expected, key=expected.__getitem__)
    assert found.threshold == best
    assert found.miou == pytest.approx(expected[best])


def test_fixed_threshold_between_the_others_joins_the_curve():
    found = scored(random_images(3, seed=2), thresholds=[0.2, 0.6], fixed_threshold=0.33)
    assert list(found.curve) == [0.2, 0.33, 0.6]
    assert found.threshold == 0.33


def test_matches_the_mask_that_prediction_draws():
    maps, mask, kept = random_images(1, seed=3)[0]
    drawn = threshold_background(maps, 0.3)
    metric = SeedIoU(CLASSES, thresholds=[0.3])
    metric.update(maps, mask, kept)
    background = int(((drawn == 0) & (mask != 255)).sum())
    assert int(metric.confusion()[0, :, 0].sum()) == background
    assert int(metric.confusion().sum()) == int((mask != 255).sum())


def test_class_that_is_nowhere_does_not_take_part():
    images = random_images(4, seed=4, occurring=2)
    found, expected = scored(images, fixed_threshold=0.3), reference(images, 0.3)
    assert torch.isnan(found.iou[3:]).all()
    assert not torch.isnan(found.iou[:3]).any()
    assert found.miou == pytest.approx(expected["miou"])


def test_class_never_drawn_has_recall_0_and_no_precision():
    metric = SeedIoU(2, thresholds=[0.5])
    metric.update(torch.tensor([[[0.9, 0.9]], [[0.1, 0.2]]]), torch.tensor([[1, 2]]))
    found = metric.compute()
    assert found.recall[2] == 0
    assert found.iou[2] == 0
    assert math.isnan(found.precision[2])
    assert math.isnan(found.recall[0])  # no background pixel in the mask, none drawn
    assert found.miou == pytest.approx((0.5 + 0) / 2)


def test_merged_halves_equal_the_whole():
    images = random_images(6, seed=5)
    whole, first, second = SeedIoU(CLASSES), SeedIoU(CLASSES), SeedIoU(CLASSES)
    for index, image in enumerate(images):
        whole.update(*image)
        (first if index % 2 else second).update(*image)
    first.counts = first._reductions["counts"](torch.stack([first.counts, second.counts]))  # as over ranks
    torch.testing.assert_close(first.compute().iou, whole.compute().iou, equal_nan=True)
    assert first.compute().curve == whole.compute().curve


def test_image_without_maps_is_all_background():
    metric = SeedIoU(2, thresholds=[0.0, 0.5])
    metric.update(torch.zeros(0, 1, 3), torch.tensor([[0, 2, 255]]), torch.zeros(0, dtype=torch.long))
    for matrix in metric.confusion():
        assert matrix.tolist() == [[1, 0, 0], [0, 0, 0], [1, 0, 0]]


def test_void_image_adds_nothing_and_reset_forgets():
    metric = SeedIoU(1, thresholds=[0.5])
    metric.update(torch.ones(1, 2, 2), torch.full((2, 2), 255))
    assert int(metric.counts.sum()) == 0
    assert metric.compute().images == 1
    metric.update(torch.ones(1, 2, 2), torch.ones(2, 2, dtype=torch.uint8))
    assert metric.compute().miou == 1.0
    metric.reset()
    assert int(metric.counts.sum()) == int(metric.images) == 0


@pytest.mark.parametrize("value", [3, 254, -1])
def test_target_with_another_value_is_refused(value):
    with pytest.raises(ArgumentError, match=rf"target=.*{value}.*0\.\.2 or 255"):
        SeedIoU(2).update(torch.zeros(2, 1, 2), torch.tensor([[1, value]]))


@pytest.mark.parametrize("shape", [(2, 4, 3), (1, 3, 4), (3, 3, 4), (3, 4)])
def test_maps_of_another_size_are_refused(shape):
    with pytest.raises(ArgumentError, match=r"preds=.*\(2, 3, 4\)"):
        SeedIoU(2).update(torch.zeros(shape), torch.zeros(3, 4, dtype=torch.long))


@pytest.mark.parametrize("index", [2, -1])
def test_class_out_of_range_is_refused(index):
    with pytest.raises(ArgumentError, match=r"classes=.*\[0, 2\)"):
        SeedIoU(2).update(torch.zeros(1, 1, 1), torch.zeros(1, 1, dtype=torch.long), torch.tensor([index]))


@pytest.mark.parametrize("thresholds", [[], [0.5, 0.2], [0.2, 0.2], [-0.1, 0.5], [0.5, 1.1], [math.nan]])
def test_bad_thresholds_are_refused(thresholds):
    with pytest.raises(ArgumentError, match="thresholds="):
        SeedIoU(2, thresholds=thresholds)
