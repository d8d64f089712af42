"""Farthest-point sampling."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.clustering.cluster import cluster
from rca_lightning.clustering.farthest import cells, farthest_seeds
from rca_lightning.clustering.kmeans import PerClassGenerator


@pytest.mark.parametrize("seed", range(4))
def test_each_centre_is_the_point_farthest_from_those_before(seed):
    points = torch.randn(1, 25, 3, generator=torch.Generator().manual_seed(seed))
    valid = torch.ones(1, 25, dtype=torch.bool)
    valid[0, :5] = False
    centres, distinct = farthest_seeds(points, valid, 6, PerClassGenerator(seed, 1))
    assert distinct.all()
    assert (points[0, 5:] == centres[0, 0]).all(dim=1).any()
    for place in range(1, 6):
        distances = torch.cdist(points[0, 5:], centres[0, :place]).amin(dim=1)
        assert torch.equal(points[0, 5 + int(distances.argmax())], centres[0, place])


def test_radius_is_at_most_twice_the_best():
    points = torch.randn(1, 12, 2, generator=torch.Generator().manual_seed(0))
    radius = [
        float(torch.cdist(points[0], points[0, list(chosen)]).amin(dim=1).max())
        for chosen in itertools.combinations(range(12), 3)
    ]
    for seed in range(5):
        centres, _ = farthest_seeds(points, torch.ones(1, 12, dtype=torch.bool), 3, PerClassGenerator(seed, 1))
        assert float(torch.cdist(points[0], centres[0]).amin(dim=1).max()) <= 2 * min(radius) + 1e-6


def test_prototypes_are_means_of_the_cells():
    points = torch.randn(1, 30, 4, generator=torch.Generator().manual_seed(0))
    centres = points[:, :3]
    means, assignment = cells(points, torch.ones(1, 30, dtype=torch.bool), centres, torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(assignment[0], torch.cdist(points[0], centres[0]).argmin(dim=1))
    for own in range(3):
        torch.testing.assert_close(means[0, own], points[0, assignment[0] == own].mean(0))


def test_rare_mode_is_covered_by_one_run_whatever_its_size(modes):
    points, truth = modes([300, 150, 2], spread=0.03)
    for seed in range(10):
        found = cluster(points, 3, method="farthest", seed=seed)
        rare = found.assignment[0][torch.from_numpy(truth == 2)]
        assert len(rare.unique()) == 1
        assert int(found.sizes[0, rare[0]]) == 2


def test_iterations_have_no_effect():
    points = F.normalize(torch.randn(40, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    assert torch.equal(
        cluster(points, 4, method="farthest", iterations=1).centroids, cluster(points, 4, method="farthest").centroids
    )


@pytest.mark.parametrize("method", ["farthest", "kmeans"])
def test_missing_prototype_goes_to_the_farthest_point_by_this_method_alone(method):
    points = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    start = {"initial": points[:3], "initial_valid": torch.tensor([True, True, False])}
    found = [cluster(points, 3, method=method, iterations=1, seed=seed, **start).centroids for seed in range(8)]
    alike = [torch.equal(found[0], other) for other in found]
    assert all(alike) if method == "farthest" else not all(alike)
