"""The background threshold that a few masks choose, against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
from tests.unit.evaluation.counted_images import (
    confusion,
    count_labels,
    count_seeds,
    drawn,
    label_pairs,
    miou,
    seed_images,
)

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.intervals import best_thresholds
from rca_lightning.evaluation.seed_iou import DEFAULT_THRESHOLDS
from rca_lightning.evaluation.threshold_calibration import calibrate_threshold


def test_each_draw_has_the_best_threshold_of_its_images():
    images = seed_images(7)
    tables = [
        [confusion(drawn(maps, threshold), mask.numpy()) for maps, mask in images] for threshold in DEFAULT_THRESHOLDS
    ]
    found, curve = best_thresholds(count_seeds(images), draws=20, seed=3)
    generator, expected = np.random.default_rng(3), []
    for _ in range(20):
        rows = generator.integers(7, size=7)
        scores = [miou(sum(of_images[row] for row in rows)) for of_images in tables]
        expected.append(DEFAULT_THRESHOLDS[int(np.argmax(scores))])
    assert found.tolist() == expected
    np.testing.assert_allclose(curve, [miou(sum(of_images)) for of_images in tables])

    calibrated = calibrate_threshold(count_seeds(images), draws=20, seed=3)
    assert calibrated.threshold == sorted(expected)[9]
    assert calibrated.low <= calibrated.threshold <= calibrated.high
    assert calibrated.miou == curve[DEFAULT_THRESHOLDS.index(calibrated.threshold)]


def test_some_of_the_masks_are_those_images_alone():
    images = seed_images(9)
    rows = np.sort(np.random.default_rng(1).permutation(9)[:4])
    some = count_seeds([images[row] for row in rows])
    taken = count_seeds(images).take(rows)
    assert taken.ids == tuple(f"photo {row:03d}" for row in rows)
    assert np.array_equal(taken.table(), some.table())
    assert calibrate_threshold(count_seeds(images), masks=4, seed=1) == calibrate_threshold(some, seed=1)


@pytest.mark.parametrize("masks", [0, 10, -1])
def test_other_numbers_of_masks_are_refused(masks: int):
    with pytest.raises(ArgumentError, match=rf"masks={masks}: there are 9; give 1 to 9"):
        calibrate_threshold(count_seeds(seed_images(9)), masks=masks)


def test_label_images_have_no_threshold():
    with pytest.raises(ArgumentError, match="only seeds have a threshold"):
        calibrate_threshold(count_labels(label_pairs(3)))
