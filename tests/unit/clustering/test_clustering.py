"""k-means against scikit-learn, with both backends."""

from __future__ import annotations

import builtins
import importlib
import importlib.util
import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score

from rca_lightning.clustering import cluster as clustering
from rca_lightning.clustering import kmeans_faiss as lloyd_faiss
from rca_lightning.clustering.cluster import kmeans
from rca_lightning.clustering.kmeans import PerClassGenerator, greedy_seeds, squared_distances
from rca_lightning.errors import ArgumentError, MissingExtraError

needs_faiss = pytest.mark.skipif(importlib.util.find_spec("faiss") is None, reason="faiss is not installed")
both = pytest.mark.parametrize("backend", ["torch", pytest.param("faiss", marks=needs_faiss)])


def blobs(centres: int, each: int, dim: int = 8, spread: float = 0.3, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    means = 3 * torch.randn(centres, dim, generator=generator)
    truth = torch.arange(centres).repeat_interleave(each)[torch.randperm(centres * each, generator=generator)]
    return means[truth] + spread * torch.randn(centres * each, dim, generator=generator), truth.numpy()


@both
@pytest.mark.parametrize("seed", range(3))
def test_objective_on_clusters_is_the_best_of_ten_of_scikit_learn(backend, seed):
    points = torch.stack([F.normalize(blobs(6, 30, spread=0.5, seed=10 * seed + c)[0], dim=1) for c in range(3)])
    found = kmeans(points, 6, backend=backend, seed=seed)
    for label in range(3):
        best = KMeans(6, n_init=10, random_state=0).fit(points[label].numpy())
        assert 0.999 * best.inertia_ <= float(found.objective[label]) <= 1.01 * best.inertia_
    assert found.valid.all()


@both
def test_objective_without_clusters_is_that_of_single_runs_of_scikit_learn(backend):
    points = F.normalize(torch.randn(300, 12, generator=torch.Generator().manual_seed(0)), dim=1)
    ours = [float(kmeans(points, 8, backend=backend, seed=seed).objective[0]) for seed in range(12)]
    theirs = [KMeans(8, n_init=1, random_state=seed).fit(points.numpy()).inertia_ for seed in range(12)]
    assert sum(ours) <= 1.01 * sum(theirs)


@both
def test_separate_clusters_are_found(backend):
    points, truth = blobs(5, 20)
    found = kmeans(points, 5, backend=backend)
    assert adjusted_rand_score(truth, found.assignment[0].numpy()) == 1.0
    best = KMeans(5, n_init=10, random_state=0).fit(points.numpy())
    assert float(found.objective[0]) == pytest.approx(best.inertia_, rel=1e-4)


@both
def test_result_is_consistent_with_itself(backend):
    points, _ = blobs(4, 25, spread=2.0)
    points = torch.stack([points, points.flip(0) + 1])
    valid = torch.rand(2, 100, generator=torch.Generator().manual_seed(1)) < 0.7
    found = kmeans(points, 6, valid=valid, backend=backend, iterations=60)
    assert torch.equal(found.assignment >= 0, valid)
    for label in range(2):
        total = 0.0
        for index in torch.nonzero(valid[label])[:, 0].tolist():
            distances = [float((points[label, index] - c).double().square().sum()) for c in found.centroids[label]]
            assert distances[int(found.assignment[label, index])] == pytest.approx(min(distances), abs=1e-4)
            total += min(distances)
        assert float(found.objective[label]) == pytest.approx(total, rel=1e-4)
        for cluster in range(6):
            members = points[label, found.assignment[label] == cluster]
            torch.testing.assert_close(found.centroids[label, cluster], members.mean(0), atol=1e-4, rtol=1e-4)


@both
@pytest.mark.parametrize("iterations", [1, 2, 5])
def test_cluster_that_runs_empty_leaves_the_others_at_their_means(backend, iterations, monkeypatch):
    points = blobs(1, 40, spread=1.0)[0]
    seeds = torch.stack([points[0], torch.full((8,), 1e3)])[None]  # nobody is nearest to the second
    monkeypatch.setattr(clustering, "greedy_seeds", lambda *_: (seeds, torch.ones(1, 2, dtype=torch.bool)))
    found = kmeans(points, 2, backend=backend, iterations=iterations)
    used = int(found.valid.sum())
    distances = squared_distances(points[None], found.centroids[:, :used])[0]
    assert torch.equal(distances.argmin(dim=1), found.assignment[0])
    if used == 1:
        torch.testing.assert_close(found.centroids[0, 0], points.mean(0))
    else:  # FAISS puts a shifted copy of the full one there, which must have found its own members
        assert torch.linalg.vector_norm(found.centroids[0, 0] - found.centroids[0, 1]) > 0.1


@both
def test_each_class_is_clustered_by_itself(backend):
    parts = [blobs(3, 10, seed=seed)[0] for seed in range(2)]
    together = kmeans(torch.stack(parts), 3, backend=backend)
    for label, part in enumerate(parts):
        alone = KMeans(3, n_init=10, random_state=0).fit(part.numpy())
        assert adjusted_rand_score(alone.labels_, together.assignment[label].numpy()) == 1.0


@both
@pytest.mark.parametrize("count", [1, 2, 4])
def test_fewer_points_than_clusters_are_their_own_clusters(backend, count):
    points = torch.randn(1, 9, 5, generator=torch.Generator().manual_seed(2))
    valid = torch.zeros(1, 9, dtype=torch.bool)
    chosen = [8, 3, 0, 5][:count]
    valid[0, chosen] = True
    found = kmeans(points, 4, valid=valid, backend=backend)
    assert found.valid[0].tolist() == [place < count for place in range(4)]
    for index in chosen:
        torch.testing.assert_close(found.centroids[0, found.assignment[0, index]], points[0, index])
    assert float(found.objective[0]) == pytest.approx(0, abs=1e-5)
    assert not found.centroids[0, count:].any()


@both
@pytest.mark.parametrize("seed", range(12))
def test_copies_of_few_points_give_as_many_clusters(backend, seed):
    generator = torch.Generator().manual_seed(seed)
    # Odd sizes: there the rounding of a distance depends on where a copy lies in memory.
    count, dim, distinct = 13 + 3 * seed, 5 + 4 * seed, 1 + seed % 4
    base = F.normalize(torch.randn(distinct, dim, generator=generator), dim=1)
    which = torch.cat([torch.arange(distinct), torch.randint(0, distinct, (count,), generator=generator)])
    found = kmeans(base[which], 7, backend=backend, seed=seed)
    assert int(found.valid.sum()) == distinct
    assert adjusted_rand_score(which.numpy(), found.assignment[0].numpy()) == 1.0
    torch.testing.assert_close(found.centroids[0, found.assignment[0]], base[which])


@both
def test_empty_class_beside_a_full_one(backend):
    points = torch.stack([blobs(3, 10)[0], torch.full((30, 8), torch.nan)])
    valid = torch.tensor([True, False])[:, None].expand(2, 30)
    found = kmeans(points, 3, valid=valid, backend=backend)
    assert found.valid.tolist() == [[True] * 3, [False] * 3]
    assert (found.assignment[1] == -1).all()
    assert float(found.objective[1]) == 0
    assert torch.isfinite(found.centroids).all()


@both
@pytest.mark.parametrize("junk", [torch.nan, torch.inf, 1e30])
def test_junk_in_unused_slots_has_no_effect(backend, junk):
    points, _ = blobs(3, 12, spread=1.0)
    valid = torch.ones(36, dtype=torch.bool)
    valid[::5] = False
    clean, dirty = points.clone(), points.clone()
    clean[~valid], dirty[~valid] = 0, junk
    first = kmeans(clean, 4, valid=valid, backend=backend)
    second = kmeans(dirty, 4, valid=valid, backend=backend)
    assert torch.equal(first.centroids, second.centroids)
    assert torch.equal(first.assignment, second.assignment)


@both
def test_seed_decides(backend):
    points = F.normalize(torch.randn(200, 16, generator=torch.Generator().manual_seed(3)), dim=1)
    first, again, other = (kmeans(points, 8, backend=backend, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.centroids, again.centroids)
    assert not torch.equal(first.centroids, other.centroids)


@both
def test_global_random_state_is_left_alone(backend):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    kmeans(blobs(3, 10)[0], 3, backend=backend)
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_points_that_are_not_finite_are_refused(value):
    points = torch.zeros(1, 5, 2)
    points[0, 3, 1] = value
    with pytest.raises(ArgumentError, match="points="):
        kmeans(points, 2)


@pytest.mark.parametrize(
    ("points", "options", "name"),
    [
        (torch.zeros(5), {}, "points"),
        (torch.zeros(1, 2, 3, 4), {}, "points"),
        (torch.zeros(2, 0, 3), {}, "points"),
        (torch.zeros(5, 2), {"valid": torch.ones(4, dtype=torch.bool)}, "valid"),
        (torch.zeros(5, 2), {"num_clusters": 0}, "num_clusters"),
        (torch.zeros(5, 2), {"backend": "sklearn"}, "backend"),
    ],
)
def test_bad_arguments_are_named(points, options, name):
    with pytest.raises(ArgumentError, match=name):
        kmeans(points, **{"num_clusters": 2, **options})


@needs_faiss
def test_auto_takes_faiss_where_there_is_one():
    points = blobs(3, 10)[0]
    assert kmeans(points, 3).backend == kmeans(points, 3, backend="faiss").backend == "faiss-cpu"
    assert kmeans(points, 3, backend="torch").backend == "torch-cpu"


def test_auto_takes_torch_where_there_is_no_faiss(monkeypatch):
    monkeypatch.setattr(clustering.importlib.util, "find_spec", lambda name: None)
    assert kmeans(blobs(3, 10)[0], 3).backend == "torch-cpu"


def test_missing_faiss_is_named_with_its_pip_command(monkeypatch):
    real = importlib.import_module

    def without_faiss(name, *args):
        if name == "faiss":
            raise ModuleNotFoundError("No module named 'faiss'")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_faiss)
    with pytest.raises(MissingExtraError, match=r"'faiss'.*pip install 'rca-lightning\[cpu\]'"):
        kmeans(blobs(3, 10)[0], 3, backend="faiss")


def test_torch_backend_never_imports_faiss(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        assert not name.startswith("faiss")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr(lloyd_faiss, "require_extra", lambda *a, **k: pytest.fail("faiss was asked for"))
    assert kmeans(blobs(3, 10)[0], 3, backend="torch").backend == "torch-cpu"


def test_squared_distances_by_loops():
    generator = torch.Generator().manual_seed(4)
    points, centroids = torch.randn(2, 4, 3, generator=generator), torch.randn(2, 5, 3, generator=generator)
    found = squared_distances(points, centroids)
    for c, n, k in itertools.product(range(2), range(4), range(5)):
        expected = sum((float(p) - float(q)) ** 2 for p, q in zip(points[c, n], centroids[c, k], strict=True))
        assert float(found[c, n, k]) == pytest.approx(expected, abs=1e-5)
    assert (squared_distances(points, points) >= 0).all()


def test_seeds_are_valid_points_spread_over_the_clusters():
    hits = 0
    for seed in range(20):
        points, truth = blobs(6, 15, seed=seed)
        valid = torch.rand(1, 90, generator=torch.Generator().manual_seed(seed)) < 0.8
        seeds, distinct = greedy_seeds(points[None], valid, 6, PerClassGenerator(seed, 1))
        assert distinct.all()
        picked = [int(torch.nonzero((points == one).all(dim=1))[0, 0]) for one in seeds[0]]
        assert all(valid[0, index] for index in picked)
        hits += len({int(truth[index]) for index in picked}) == 6
    assert hits >= 18  # plain random seeds would manage one time in 60
