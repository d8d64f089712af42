"""Every method of `cluster` on banks whose clusters are known, and its options."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from rca_lightning.clustering.cluster import cluster, kmeans
from rca_lightning.errors import ArgumentError

METHODS = ("kmeans", "spherical", "sinkhorn", "gmm", "farthest")
every = pytest.mark.parametrize("method", METHODS)
has_faiss = importlib.util.find_spec("faiss") is not None
needs_faiss = pytest.mark.skipif(not has_faiss, reason="faiss is not installed")
FAISS = ("kmeans", "spherical") if has_faiss else ()
runs = pytest.mark.parametrize(("method", "backend"), [(m, "torch") for m in METHODS] + [(m, "faiss") for m in FAISS])


def uniform(count: int, dim: int, seed: int = 0, classes: int = 1) -> torch.Tensor:
    return F.normalize(torch.randn(classes, count, dim, generator=torch.Generator().manual_seed(seed)), dim=2)


@runs
@pytest.mark.parametrize("seed", range(3))
def test_six_separate_modes_are_found(method, backend, seed, modes):
    banks = [modes([20] * 6, seed=2 * seed + label) for label in range(2)]
    found = cluster(torch.stack([b[0] for b in banks]), 6, method=method, backend=backend, seed=seed, restarts=3)
    assert found.valid.all()
    for label, (points, truth) in enumerate(banks):
        assert adjusted_rand_score(truth, found.assignment[label].numpy()) == 1.0
        for own in range(6):
            mean = points[found.assignment[label] == own].mean(0)
            mean = F.normalize(mean, dim=0) if method in ("spherical", "sinkhorn") else mean
            torch.testing.assert_close(found.centroids[label, own], mean, atol=1e-4, rtol=0)


@every
def test_objective_is_the_squared_distance_to_the_own_centroid(method):
    points = uniform(60, 8)
    found = cluster(points, 5, method=method)
    total = sum(
        float((point - found.centroids[0, own]).square().sum())
        for point, own in zip(points[0], found.assignment[0].tolist(), strict=True)
    )
    assert float(found.objective[0]) == pytest.approx(total, rel=1e-5)
    assert found.sizes[0].tolist() == [(found.assignment[0] == k).sum() for k in range(5)]


@runs
def test_unit_methods_give_unit_centroids_whatever_the_length_of_points(method, backend):
    points = uniform(60, 8)
    scaled = points * torch.rand(1, 60, 1, generator=torch.Generator().manual_seed(1)).add(0.5)
    found = cluster(scaled, 5, method=method, backend=backend)
    lengths = found.centroids.norm(dim=2)
    assert found.unit == (method in ("spherical", "sinkhorn"))
    assert torch.allclose(lengths, torch.ones(1, 5), atol=1e-5) == found.unit
    if found.unit:
        same = cluster(points, 5, method=method, backend=backend)
        torch.testing.assert_close(found.centroids, same.centroids, atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["torch", pytest.param("faiss", marks=needs_faiss)])
def test_spherical_is_a_fixed_point_of_the_cosine(backend):
    points = uniform(200, 6)
    found = cluster(points, 7, method="spherical", backend=backend, iterations=200)
    cosines = points[0] @ found.centroids[0].T
    assert torch.equal(cosines.argmax(dim=1), found.assignment[0])
    for own in range(7):
        mean = points[0, found.assignment[0] == own].sum(0)
        torch.testing.assert_close(found.centroids[0, own], mean / mean.norm(), atol=1e-5, rtol=0)
    assert float(found.objective[0]) == pytest.approx(float((2 - 2 * cosines.amax(dim=1)).sum()), rel=1e-4)


@needs_faiss
@pytest.mark.parametrize("method", ["kmeans", "spherical"])
def test_faiss_takes_the_same_steps(method):
    points = uniform(200, 6, classes=2)
    theirs = cluster(points, 7, method=method, backend="faiss", iterations=3)
    ours = cluster(points, 7, method=method, backend="torch", iterations=4)  # one more ends those of FAISS
    torch.testing.assert_close(theirs.centroids, ours.centroids, atol=1e-5, rtol=0)
    assert theirs.backend == "faiss-cpu"


def test_mean_without_direction_keeps_the_last_centroid():
    points = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    found = cluster(points, 1, method="spherical", backend="torch")
    assert float(found.centroids[0, 0].norm()) == pytest.approx(1)


@runs
@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_regions_than_clusters(method, backend, count, warm):
    points, initial = uniform(9, 5), uniform(4, 5, seed=9) if warm else None
    valid = torch.zeros(1, 9, dtype=torch.bool)
    valid[0, [8, 3, 0][:count]] = True
    found = cluster(points, 4, method=method, valid=valid, backend=backend, initial=initial)
    assert torch.equal(found.assignment >= 0, valid)
    assert found.valid[0].tolist() == [place < count for place in range(4)]
    torch.testing.assert_close(found.centroids[0, found.assignment[0, valid[0]]], points[valid], atol=1e-5, rtol=0)
    assert not found.centroids[0, count:].any()


@runs
@pytest.mark.parametrize("seed", range(6))
def test_copies_of_few_points_give_as_many_clusters(method, backend, seed):
    generator = torch.Generator().manual_seed(seed)
    count, dim, distinct = 13 + 3 * seed, 5 + 4 * seed, 1 + seed % 4
    base = uniform(distinct, dim, seed)[0]
    which = torch.cat([torch.arange(distinct), torch.randint(0, distinct, (count,), generator=generator)])
    found = cluster(base[which], 7, method=method, backend=backend, seed=seed, restarts=2)
    again = cluster(base[which], 7, method=method, backend=backend, initial=found.centroids, restarts=2)
    for one in (found, again):
        assert int(one.valid.sum()) == distinct
        assert adjusted_rand_score(which.numpy(), one.assignment[0].numpy()) == 1.0
        torch.testing.assert_close(one.centroids[0, one.assignment[0]], base[which], atol=1e-5, rtol=0)


@runs
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_empty_class_and_junk_in_unused_slots(method, backend, junk, modes):
    points = torch.stack([modes([10] * 3)[0], torch.full((30, 32), junk)])
    valid = torch.tensor([True, False])[:, None].repeat(1, 30)
    valid[0, ::5] = False
    clean = cluster(points, 3, method=method, valid=valid, backend=backend, restarts=2)
    points[0, ::5] = junk
    found = cluster(points, 3, method=method, valid=valid, backend=backend, restarts=2)
    assert torch.equal(found.centroids, clean.centroids)
    assert found.valid.tolist() == [[True] * 3, [False] * 3]
    assert torch.equal(found.assignment >= 0, valid)
    assert float(found.objective[1]) == 0
    warm = cluster(points, 3, method=method, valid=valid, backend=backend, initial=found.centroids)
    assert warm.valid.tolist() == found.valid.tolist()


@runs
def test_seed_decides_and_the_global_random_state_is_left_alone(method, backend):
    points = uniform(80, 16)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (cluster(points, 8, method=method, backend=backend, seed=s, restarts=2) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.centroids, again.centroids)
    assert torch.equal(first.assignment, again.assignment)
    assert not torch.equal(first.centroids, other.centroids)


@runs
def test_restarts_are_never_worse_than_one(method, backend):
    points = uniform(90, 6, classes=6)
    one = cluster(points, 7, method=method, backend=backend)
    five = cluster(points, 7, method=method, backend=backend, restarts=4)
    assert (five.objective <= one.objective).all()
    assert (five.objective < 0.999 * one.objective).any()
    for label in range(6):  # what won is whole: centroids, assignment and objective of one run
        own = five.centroids[label, five.assignment[label]]
        assert float((points[label] - own).square().sum()) == pytest.approx(float(five.objective[label]), rel=1e-4)


def test_restarted_kmeans_reaches_the_best_of_ten_of_scikit_learn():
    points = uniform(200, 5)
    found = cluster(points, 8, restarts=10, iterations=100)
    best = KMeans(8, n_init=10, random_state=0).fit(points[0].numpy())
    assert float(found.objective[0]) == pytest.approx(best.inertia_, rel=0.01)


@every
def test_clusters_per_class(method):
    points = uniform(40, 8, classes=4)
    wanted = torch.tensor([0, 1, 3, 6])
    found = cluster(points, 6, method=method, clusters_per_class=wanted)
    assert torch.equal(found.valid.sum(dim=1), wanted)
    assert (found.assignment[0] == -1).all()
    assert (found.assignment[1:] >= 0).all()
    assert not found.centroids[~found.valid].any()
    alone = cluster(points[2], 3, method=method, clusters_per_class=torch.tensor([3]))
    warm = cluster(points[2], 3, method=method, initial=alone.centroids, clusters_per_class=torch.tensor([2]))
    assert int(warm.valid.sum()) == 2


@every
@pytest.mark.parametrize("warm", [False, True])
def test_one_cluster_is_the_mean(method, warm):
    points = uniform(40, 8)
    found = cluster(points, 1, method=method, initial=points[:, :1] if warm else None)
    mean = F.normalize(points.mean(dim=1), dim=1) if found.unit else points.mean(dim=1)
    torch.testing.assert_close(found.centroids[:, 0], mean)


def test_kmeans_is_the_default():
    points = uniform(50, 8)
    assert torch.equal(kmeans(points, 4, seed=3).centroids, cluster(points, 4, seed=3).centroids)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"method": "dbscan"}, "method='dbscan'"),
        ({"backend": "sklearn"}, "backend='sklearn'"),
        ({"method": "gmm", "backend": "faiss"}, "backend='faiss'.*'gmm'"),
        ({"restarts": 0}, "restarts=0"),
        ({"clusters_per_class": torch.tensor([1])}, "clusters_per_class"),
        ({"clusters_per_class": torch.tensor([1, 5])}, r"clusters_per_class=\[1, 5\]"),
        ({"clusters_per_class": torch.tensor([1, -1])}, "clusters_per_class"),
        ({"initial": torch.zeros(2, 3, 4)}, "initial"),
        ({"initial": torch.zeros(2, 4, 3), "initial_valid": torch.ones(2, 3, dtype=torch.bool)}, "initial"),
        ({"initial": torch.full((2, 4, 3), torch.nan)}, "initial='non-finite'"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ArgumentError, match=name):
        cluster(torch.rand(2, 5, 3), 4, **options)
