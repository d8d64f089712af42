"""Balanced assignment."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import linear_sum_assignment

from rca_lightning.clustering.cluster import cluster
from rca_lightning.clustering.sinkhorn import transport_plan


@pytest.mark.parametrize("sizes", [[120, 60, 20], [170, 20, 10], [100, 60, 20, 10, 10]])
def test_sizes_are_balanced_where_those_of_kmeans_are_not(sizes, modes):
    points, _ = modes(sizes, spread=0.15)
    count = len(sizes)
    share = sum(sizes) / count
    even = cluster(points, count, method="sinkhorn").sizes[0]
    runs = [cluster(points, count, method="spherical", seed=seed) for seed in range(5)]
    natural = min(runs, key=lambda run: float(run.objective)).sizes[0]
    assert sorted(natural.tolist()) == sorted(sizes)
    assert 0.8 * share <= even.min() <= even.max() <= 1.2 * share


def test_plan_has_equal_sums():
    scores = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(0))
    valid = torch.rand(3, 40, generator=torch.Generator().manual_seed(1)) < 0.8
    valid[2] = False
    usable = torch.ones(3, 5, dtype=torch.bool)
    usable[1, 3:] = False
    plan, _ = transport_plan(scores, valid, usable, rounds=2000, epsilon=0.2)
    torch.testing.assert_close(plan.sum(dim=2), valid.double(), atol=1e-6, rtol=0)
    share = valid.sum(dim=1, keepdim=True) / usable.sum(dim=1, keepdim=True)
    torch.testing.assert_close(plan.sum(dim=1), (usable * share).double(), atol=1e-3, rtol=0)
    assert not plan[1, :, 3:].any()
    assert not plan[2].any()


def test_plan_approaches_the_exact_assignment():
    scores = torch.randn(1, 12, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    everything = torch.ones(1, 12, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    plan, _ = transport_plan(scores, *everything, epsilon=0.05, rounds=3000)
    copies = np.repeat(scores[0].numpy(), 4, axis=1)  # four places a prototype
    rows, columns = linear_sum_assignment(-copies)
    assert plan.argmax(dim=2)[0].tolist() == (columns // 4).tolist()
    assert float((plan * scores).sum()) == pytest.approx(float(copies[rows, columns].sum()), rel=0.01)


def test_plan_goes_on_from_earlier_factors():
    scores = torch.randn(1, 60, 4, generator=torch.Generator().manual_seed(0))
    everything = torch.ones(1, 60, dtype=torch.bool), torch.ones(1, 4, dtype=torch.bool)
    once, _ = transport_plan(scores, *everything, rounds=60)
    _, factors = transport_plan(scores, *everything, rounds=30)
    twice, _ = transport_plan(scores, *everything, rounds=30, start=factors)
    torch.testing.assert_close(once, twice)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_plan_does_not_depend_on_the_scale_and_offset_of_scores(scale):
    scores = torch.randn(1, 30, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    everything = torch.ones(1, 30, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    torch.testing.assert_close(
        transport_plan(scores, *everything)[0], transport_plan(scale * scores + 5 * scale, *everything)[0]
    )


@pytest.mark.parametrize("extreme", [0.0, 1.0])
def test_plan_is_finite_at_the_extremes(extreme):
    scores = torch.zeros(1, 10, 3)
    scores[0, :, 0] = extreme
    plan, _ = transport_plan(scores, torch.ones(1, 10, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool))
    assert torch.isfinite(plan).all()
    torch.testing.assert_close(plan.sum(dim=2), torch.ones(1, 10, dtype=torch.float64))


def test_centroids_are_the_directions_of_their_members(modes):
    points, _ = modes([60, 30, 10], spread=0.2)
    found = cluster(points, 3, method="sinkhorn")
    for own in range(3):
        members = points[found.assignment[0] == own]
        torch.testing.assert_close(found.centroids[0, own], F.normalize(members.mean(0), dim=0), atol=1e-5, rtol=0)
