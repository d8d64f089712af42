"""Bootstrap intervals against a loop that adds up the confusion matrices of each draw."""

from __future__ import annotations

import math

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
from rca_lightning.evaluation.intervals import miou_interval, paired_difference


def draws_of(matrices: list[np.ndarray], draws: int, seed: int) -> list[float]:
    """Mean IoU of each draw, one image at a time."""
    generator, found = np.random.default_rng(seed), []
    for _ in range(draws):
        total = np.zeros_like(matrices[0])
        for index in generator.integers(len(matrices), size=len(matrices)):
            total += matrices[index]
        found.append(miou(total))
    return found


def test_interval_is_that_of_a_plain_loop():
    pairs = label_pairs(9)
    matrices = [confusion(*pair) for pair in pairs]
    found = miou_interval(count_labels(pairs), None, draws=200, seed=3)
    expected = draws_of(matrices, 200, 3)
    assert found.value == pytest.approx(miou(sum(matrices)), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])), abs=1e-12)
    assert (found.draws, found.images) == (200, 9)
    assert found.low < found.value < found.high


def test_seeds_are_drawn_at_their_threshold():
    images = seed_images(7)
    counts = count_seeds(images)
    for threshold in (0.2, 0.7):
        matrices = [confusion(drawn(maps, threshold), mask.numpy()) for maps, mask in images]
        found = miou_interval(counts, threshold, draws=50, seed=1)
        expected = np.percentile(draws_of(matrices, 50, 1), [2.5, 97.5])
        assert (found.low, found.high) == pytest.approx(tuple(expected), abs=1e-12)


def test_many_images_are_summed_a_part_at_a_time(monkeypatch):
    pairs = label_pairs(7)
    whole = miou_interval(count_labels(pairs), None, draws=40)
    monkeypatch.setattr("rca_lightning.evaluation.image_counts._IMAGES_AT_ONCE", 3)
    assert miou_interval(count_labels(pairs), None, draws=40) == whole


def test_draws_are_the_same_each_time_and_others_with_another_seed():
    counts = count_labels(label_pairs(6))
    assert miou_interval(counts, None) == miou_interval(counts, None)
    assert miou_interval(counts, None, seed=1).low != miou_interval(counts, None).low


def test_paired_difference_is_that_of_a_plain_loop_and_narrower_than_the_two_apart():
    worse, better = label_pairs(12, agreement=0.6), label_pairs(12, seed=1, agreement=0.8)
    found = paired_difference(count_labels(worse), count_labels(better), (None, None), draws=200, seed=5)
    parts = [[confusion(*pair) for pair in pairs] for pairs in (worse, better)]
    expected = np.subtract(draws_of(parts[1], 200, 5), draws_of(parts[0], 200, 5))
    assert found.value == pytest.approx(miou(sum(parts[1])) - miou(sum(parts[0])), abs=1e-12)
    assert (found.low, found.high) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])), abs=1e-12)
    assert 0 < found.low < found.value < found.high
    apart = [miou_interval(count_labels(pairs), None, draws=200, seed=5) for pairs in (worse, better)]
    assert found.high - found.low < sum(one.high - one.low for one in apart)


def test_a_run_differs_from_itself_by_nothing():
    counts = count_seeds(seed_images(5))
    found = paired_difference(counts, counts, (0.5, 0.5))
    assert (found.value, found.low, found.high) == (0.0, 0.0, 0.0)
    assert paired_difference(counts, counts, (0.5, 0.1)).value != 0.0


def test_seeds_and_labels_of_the_same_images_can_be_paired():
    images = seed_images(5)
    labels = count_labels([(drawn(maps, 0.5), mask.numpy()) for maps, mask in images])
    found = paired_difference(count_seeds(images), labels, (0.5, None))
    assert (found.value, found.low, found.high) == pytest.approx((0.0, 0.0, 0.0))


def test_one_image_has_an_interval_without_width():
    found = miou_interval(count_labels(label_pairs(1)), None)
    assert found.low == found.value == found.high


def test_void_images_have_no_interval():
    void = (np.ones((2, 2), dtype=np.int64), np.full((2, 2), 255))
    found = miou_interval(count_labels([void, void]), None, draws=3)
    assert all(math.isnan(value) for value in (found.value, found.low, found.high))


def test_what_cannot_be_paired_is_refused():
    one = count_labels(label_pairs(3))
    with pytest.raises(ArgumentError, match=r"second='4 images, of which 1 are not in the first'"):
        paired_difference(one, count_labels(label_pairs(4)), (None, None))
    with pytest.raises(ArgumentError, match=r"second='5 classes, 3 in the first'"):
        paired_difference(one, count_labels(label_pairs(3), classes=5), (None, None))
    for draws in (0, -1):
        with pytest.raises(ArgumentError, match=f"draws={draws}: give 1 or more"):
            miou_interval(one, None, draws=draws)
