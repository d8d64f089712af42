"""The background threshold that no mask chose, against a plain loop in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rca_lightning.errors import ArgumentError
from rca_lightning.evaluation.auto_threshold import BINS, AutoThreshold, otsu_threshold, upper_mean
from rca_lightning.evaluation.map_kinds import MapKind, default_thresholds, map_kind, thresholds_of


def spread_between(histogram: list[float], count: int) -> float:
    """Variance between the means of the first bins and the others, times the total weight squared."""
    middles = [(place + 0.5) / len(histogram) for place in range(len(histogram))]
    groups = [(histogram[:count], middles[:count]), (histogram[count:], middles[count:])]
    weights = [sum(group) for group, _ in groups]
    if min(weights) == 0:
        return 0.0
    means = [
        sum(w * x for w, x in zip(*group, strict=True)) / total for group, total in zip(groups, weights, strict=True)
    ]
    return weights[0] * weights[1] * (means[0] - means[1]) ** 2


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=30).filter(lambda counts: sum(count > 0 for count in counts) > 1)
)
def test_no_other_threshold_parts_the_groups_further(counts: list[int]):
    found = otsu_threshold(torch.tensor(counts, dtype=torch.float64))
    spreads = [spread_between([float(count) for count in counts], place) for place in range(1, len(counts) + 1)]
    assert spreads[round(found * len(counts)) - 1] == pytest.approx(max(spreads), rel=1e-9)


def test_between_two_peaks_it_is_the_middle_one_of_those_that_part_them():
    histogram = torch.zeros(100)
    histogram[[10, 11]], histogram[[80, 81]] = 3.0, 1.0
    assert otsu_threshold(histogram) == pytest.approx(0.46, abs=0.011)
    assert otsu_threshold(torch.nn.functional.one_hot(torch.tensor(7), 10)) == pytest.approx(0.8)


def test_the_stronger_group_has_the_mean_of_a_plain_loop():
    histogram = [4.0, 3.0, 0.0, 0.0, 1.0, 0.0, 2.0, 3.0, 0.0, 0.0]
    upper = [(weight, (place + 0.5) / 10) for place, weight in enumerate(histogram) if place >= 4]
    expected = sum(weight * middle for weight, middle in upper) / sum(weight for weight, _ in upper)
    assert upper_mean(torch.tensor(histogram)) == pytest.approx(expected, rel=1e-12)
    assert upper_mean(torch.nn.functional.one_hot(torch.tensor(7), 10)) == pytest.approx(0.75)


@pytest.mark.parametrize("histogram", [torch.zeros(4), torch.tensor([1.0, -1.0]), torch.ones(2, 2), torch.zeros(0)])
def test_no_histogram(histogram: torch.Tensor):
    with pytest.raises(ArgumentError, match="histogram"):
        otsu_threshold(histogram)


def test_each_image_counts_the_same_and_its_strongest_map_alone():
    generator = np.random.default_rng(0)
    images = [generator.random((2, 3, 5)), generator.random((1, 40, 30)), np.zeros((0, 4, 4)), np.ones((1, 2, 2))]
    auto = AutoThreshold()
    expected = np.zeros(BINS)
    for maps in images:
        auto.update(torch.from_numpy(maps))
        if len(maps):
            strengths = maps.max(axis=0).ravel()
            for strength in strengths:
                expected[min(int(np.float32(strength) * BINS), BINS - 1)] += 1 / len(strengths)
    np.testing.assert_allclose(auto.histogram.numpy(), expected, atol=1e-12)
    assert upper_mean(auto.histogram) == pytest.approx(upper_mean(torch.from_numpy(expected)), rel=1e-9)


def test_without_a_map_there_is_no_threshold():
    auto = AutoThreshold()
    auto.update(torch.zeros(0, 4, 4))
    assert auto.compute() is None


def test_parted_maps_are_parted():
    weak, strong = torch.full((1, 8, 8), 0.15), torch.full((1, 8, 8), 0.15)
    strong[:, :3] = 0.6
    auto = AutoThreshold()
    auto.update(weak)
    auto.update(strong)
    assert 0.15 < auto.compute() < 0.6


def strong_parts(strength: float) -> torch.Tensor:
    """A map of which a quarter has a strength and the rest a tenth of it."""
    maps = torch.full((1, 8, 8), strength / 10)
    maps[:, :4, :4] = strength
    return maps


@pytest.mark.parametrize("kind", ["contrasted_attention", "attention", "propagated_cam", "cam"])
def test_maps_as_strong_as_usual_have_the_default_threshold_and_stronger_ones_a_higher(kind: MapKind):
    usual = thresholds_of(kind)
    chosen = []
    for strength in (usual.strength, usual.strength + 0.1):
        auto = AutoThreshold(kind)
        auto.update(strong_parts(strength))
        chosen.append(auto.compute())
    assert chosen[0] == pytest.approx(default_thresholds(kind)["background_threshold"], abs=0.005)
    assert 0.01 < chosen[1] - chosen[0] < 0.1


def test_where_the_kind_is_not_known_flat_maps_have_a_high_and_peaked_ones_a_low_threshold():
    chosen = {}
    for strength in (0.2, 0.48, 0.78, 1.0):
        auto = AutoThreshold()
        auto.update(strong_parts(strength))
        chosen[strength] = auto.compute()
    assert chosen[0.2] == 0.05
    assert 0.1 < chosen[0.48] < 0.2 < 0.5 < chosen[0.78] < 0.6 < chosen[1.0] <= 0.95


@pytest.mark.parametrize(
    ("attention", "contrasted", "propagated", "kind"),
    [
        (True, True, True, "contrasted_attention"),
        (True, False, False, "attention"),
        (False, True, True, "propagated_cam"),
        (False, False, False, "cam"),
    ],
)
def test_kinds(attention: bool, contrasted: bool, propagated: bool, kind: MapKind):
    assert map_kind(attention=attention, contrasted=contrasted, propagated=propagated) == kind
