"""Clusters that start from earlier prototypes, and the order they keep."""

from __future__ import annotations

import itertools

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.clustering.cluster import cluster
from rca_lightning.clustering.clusters import Clusters
from rca_lightning.clustering.kmeans import PerClassGenerator, by_distance, fill_seeds
from rca_lightning.clustering.ordering import in_order_of

METHODS = ("kmeans", "spherical", "sinkhorn", "gmm", "farthest")
every = pytest.mark.parametrize("method", METHODS)


def centres(points: torch.Tensor, truth) -> torch.Tensor:
    return torch.stack([points[truth == mode].mean(0) for mode in range(int(truth.max()) + 1)])


@every
@pytest.mark.parametrize("restarts", [1, 4])
def test_cluster_stays_near_its_prototype(method, restarts, modes):
    points, truth = modes([15] * 6)
    earlier = centres(points, truth)[torch.tensor([3, 0, 5, 1, 4, 2])]
    moved = F.normalize(earlier + 0.1 * torch.randn(6, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    found = cluster(points, 6, method=method, initial=moved, restarts=restarts, seed=1)
    expected = F.normalize(earlier, dim=1)
    assert (F.normalize(found.centroids[0], dim=1) * expected).sum(1).min() > 0.99


@every
def test_second_clustering_of_the_same_bank_changes_little(method):
    points = F.normalize(torch.randn(3, 80, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    first = cluster(points, 5, method=method, iterations=60)
    again = cluster(points, 5, method=method, initial=first.centroids, initial_valid=first.valid, iterations=60, seed=7)
    assert (first.assignment == again.assignment).float().mean() > (0.75 if method == "farthest" else 0.9)
    assert (again.objective <= first.objective * 1.01).all()


@every
def test_missing_prototypes_are_found_in_their_place(method, modes):
    points, truth = modes([12] * 6)
    earlier = centres(points, truth)
    valid = torch.tensor([True, False, True, True, False, True])
    earlier[~valid] = torch.nan
    found = cluster(points, 6, method=method, initial=earlier, initial_valid=valid)
    nearest = torch.cdist(found.centroids[0], centres(points, truth)).argmin(dim=1)
    assert nearest[valid].tolist() == [0, 2, 3, 5]
    assert sorted(nearest.tolist()) == list(range(6))


@every
def test_prototype_without_a_point_is_seeded_again(method, modes):
    points, truth = modes([12] * 4)
    earlier = centres(points, truth)
    earlier[2] = earlier[1]  # a copy gets no point: the first of equals is the nearest
    earlier[3] = -earlier[:3].sum(0)
    found = cluster(points, 4, method=method, initial=earlier)
    nearest = torch.cdist(found.centroids[0], centres(points, truth)).argmin(dim=1)
    assert nearest[:2].tolist() == [0, 1]
    assert sorted(nearest.tolist()) == [0, 1, 2, 3]


def test_restarts_leave_a_bad_start(modes):
    points, truth = modes([20] * 6)
    # Two prototypes share a mode and one holds two: k-means cannot get out of that by itself.
    earlier = centres(points, truth)
    inside = points[truth == 0]
    earlier[0], earlier[1] = inside[0], inside[1]
    earlier[2] = (earlier[2] + centres(points, truth)[1]) / 2
    stuck = cluster(points, 6, initial=earlier)
    freed = cluster(points, 6, initial=earlier, restarts=6)
    assert float(freed.objective[0]) < 0.8 * float(stuck.objective[0])
    places = torch.cdist(freed.centroids[0], centres(points, truth)).argmin(dim=1).tolist()
    assert places[3:] == [3, 4, 5]


def test_warm_start_equals_lloyd_from_there():
    points = F.normalize(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)), dim=1)
    start = points[:3].clone()
    found = cluster(points, 3, initial=start, iterations=1, backend="torch")
    own = torch.cdist(points, start).argmin(dim=1)
    means = torch.stack([points[own == k].mean(0) for k in range(3)])
    torch.testing.assert_close(found.centroids[0], means)


@every
def test_few_regions_are_their_own_prototypes_in_the_order_of_the_earlier(method):
    points = F.normalize(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), dim=1)
    earlier = F.normalize(points[[2, 0, 1, 1]] + torch.tensor([[0.05], [0.05], [0.05], [-0.3]]), dim=1)
    found = cluster(points, 4, method=method, initial=earlier)
    torch.testing.assert_close(found.centroids[0, :3], points[[2, 0, 1]], atol=1e-5, rtol=0)


@every
def test_as_many_regions_as_prototypes_are_all_found_from_any_start(method):
    generator = torch.Generator().manual_seed(0)
    points, earlier = (F.normalize(torch.randn(12, 4, 8, generator=generator), dim=2) for _ in range(2))
    found = cluster(points, 4, method=method, initial=earlier)
    assert found.valid.all()
    assert (found.objective < 1e-5).all()


@every
def test_prototypes_beyond_the_number_of_a_class_are_not_started_from(method):
    points = torch.eye(4)[:1].expand(10, 4)
    earlier = torch.stack([-points[0], points[0]])
    found = cluster(points, 2, method=method, initial=earlier, clusters_per_class=torch.tensor([1]))
    assert found.valid.tolist() == [[True, False]]
    torch.testing.assert_close(found.centroids[0, 0], points[0])


def test_fill_seeds_keeps_what_is_there_and_adds_distinct_points():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(3, 20, 4, generator=generator)
    valid = torch.ones(3, 20, dtype=torch.bool)
    valid[2] = False
    initial, given = points[:, :4] + 0.01, torch.zeros(3, 4, dtype=torch.bool)
    given[0, 1], given[0, 3] = True, True
    draws = PerClassGenerator(0, 3)
    centroids, usable = fill_seeds(points, valid, initial, given, draws, by_distance(4, draws))
    assert usable.tolist() == [[True] * 4, [True] * 4, [False] * 4]
    assert torch.equal(centroids[0, [1, 3]], initial[0, [1, 3]])
    for row in (centroids[0, 0], centroids[0, 2]):
        assert (points[0] == row).all(dim=1).any()
    assert len({tuple(row.tolist()) for row in centroids[1]}) == 4


@pytest.mark.parametrize("seed", range(5))
def test_order_is_the_greedy_match_of_cosines(seed):
    generator = torch.Generator().manual_seed(seed)
    initial = F.normalize(torch.randn(1, 5, 6, generator=generator), dim=2)
    shuffle = torch.randperm(5, generator=generator)
    near = initial[:, shuffle] + 0.05 * torch.randn(1, 5, 6, generator=generator)
    assignment = torch.tensor([[0, 1, 2, 3, 4, -1]])
    clusters = Clusters(near, torch.ones(1, 5, dtype=torch.bool), assignment, torch.zeros(1), "")
    found = in_order_of(clusters, initial, torch.ones(1, 5, dtype=torch.bool))
    assert (torch.cdist(found.centroids[0], initial[0]).argmin(dim=1) == torch.arange(5)).all()
    for point in range(5):
        assert torch.equal(found.centroids[0, found.assignment[0, point]], near[0, point])
    assert found.assignment[0, 5] == -1


@pytest.mark.parametrize("used", range(5))
def test_order_keeps_valid_clusters_first_for_any_given_prototypes(used):
    generator = torch.Generator().manual_seed(used)
    valid = torch.arange(4)[None] < used
    for pattern in itertools.product([False, True], repeat=4):
        initial = torch.randn(1, 4, 3, generator=generator)
        centroids = torch.randn(1, 4, 3, generator=generator) * valid[:, :, None]
        assignment = torch.arange(used)[None]
        found = in_order_of(
            Clusters(centroids, valid, assignment, torch.zeros(1), ""), initial, torch.tensor([pattern])
        )
        assert torch.equal(found.valid, valid)
        assert sorted(found.assignment[0].tolist()) == list(range(used))
        assert torch.equal(found.centroids[0, found.assignment[0]], centroids[0, :used])
