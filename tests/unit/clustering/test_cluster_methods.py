"""Every method of `cluster` on banks whose clusters are known, and its options."""

from __future__ import annotations

import importlib.util

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from rca_lightning.clustering.cluster import cluster, kmeans
from rca_lightning.errors import ArgumentError

METHODS = ("kmeans", "spherical", "sinkhorn")
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
    found = cluster(torch.stack([b[0] for b in banks]), 6, method=method, backend=backend, seed=seed)
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
    unit = method in ("spherical", "sinkhorn")
    assert torch.allclose(lengths, torch.ones(1, 5), atol=1e-5) == unit
    if unit:
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
@pytest.mark.parametrize("count", [1, 2, 3])
def test_fewer_regions_than_clusters(method, backend, count):
    points = uniform(9, 5)
    valid = torch.zeros(1, 9, dtype=torch.bool)
    valid[0, [8, 3, 0][:count]] = True
    found = cluster(points, 4, method=method, valid=valid, backend=backend)
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
    found = cluster(base[which], 7, method=method, backend=backend, seed=seed)
    assert int(found.valid.sum()) == distinct
    assert adjusted_rand_score(which.numpy(), found.assignment[0].numpy()) == 1.0
    torch.testing.assert_close(found.centroids[0, found.assignment[0]], base[which], atol=1e-5, rtol=0)


@runs
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_empty_class_and_junk_in_unused_slots(method, backend, junk, modes):
    points = torch.stack([modes([10] * 3)[0], torch.full((30, 32), junk)])
    valid = torch.tensor([True, False])[:, None].repeat(1, 30)
    valid[0, ::5] = False
    clean = cluster(points, 3, method=method, valid=valid, backend=backend)
    points[0, ::5] = junk
    found = cluster(points, 3, method=method, valid=valid, backend=backend)
    assert torch.equal(found.centroids, clean.centroids)
    assert found.valid.tolist() == [[True] * 3, [False] * 3]
    assert torch.equal(found.assignment >= 0, valid)
    assert float(found.objective[1]) == 0


@runs
def test_seed_decides_and_the_global_random_state_is_left_alone(method, backend):
    points = uniform(80, 16)
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first, again, other = (cluster(points, 8, method=method, backend=backend, seed=s) for s in (1, 1, 2))
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(first.centroids, again.centroids)
    assert torch.equal(first.assignment, again.assignment)
    assert not torch.equal(first.centroids, other.centroids)


@every
def test_clusters_per_class(method):
    points = uniform(40, 8, classes=4)
    wanted = torch.tensor([0, 1, 3, 6])
    found = cluster(points, 6, method=method, clusters_per_class=wanted)
    assert torch.equal(found.valid.sum(dim=1), wanted)
    assert (found.assignment[0] == -1).all()
    assert (found.assignment[1:] >= 0).all()
    assert not found.centroids[~found.valid].any()


@every
def test_one_cluster_is_the_mean(method):
    points = uniform(40, 8)
    found = cluster(points, 1, method=method)
    mean = points.mean(dim=1) if method == "kmeans" else F.normalize(points.mean(dim=1), dim=1)
    torch.testing.assert_close(found.centroids[:, 0], mean)


def test_kmeans_is_the_default():
    points = uniform(50, 8)
    assert torch.equal(kmeans(points, 4, seed=3).centroids, cluster(points, 4, seed=3).centroids)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"method": "dbscan"}, "method='dbscan'"),
        ({"backend": "sklearn"}, "backend='sklearn'"),
        ({"method": "sinkhorn", "backend": "faiss"}, "backend='faiss'.*'sinkhorn'"),
        ({"method": "gmm"}, r"method='gmm': gone since 0\.2; give one of kmeans, spherical, sinkhorn"),
        ({"method": "farthest"}, "method='farthest': gone since"),
        ({"restarts": 5}, "restarts=5: gone since"),
        ({"initial": torch.zeros(2, 4, 3)}, r"(?s)initial=.*gone since"),
        ({"initial_valid": None}, "initial_valid=None: gone since"),
        ({"clusters_per_class": torch.tensor([1])}, "clusters_per_class"),
        ({"clusters_per_class": torch.tensor([1, 5])}, r"clusters_per_class=\[1, 5\]"),
        ({"clusters_per_class": torch.tensor([1, -1])}, "clusters_per_class"),
    ],
)
def test_bad_arguments_are_named(options, name):
    with pytest.raises(ArgumentError, match=name):
        cluster(torch.rand(2, 5, 3), 4, **options)
