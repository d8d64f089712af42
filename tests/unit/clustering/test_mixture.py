"""The mixture against scikit-learn and an EM written in loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from rca_lightning.clustering import mixture as module
from rca_lightning.clustering.cluster import cluster
from rca_lightning.clustering.mixture import effective_dimension, mixture


def overlapping(count: int = 300, dim: int = 3, seed: int = 0) -> tuple[torch.Tensor, np.ndarray]:
    generator = torch.Generator().manual_seed(seed)
    centres = 2.2 * torch.eye(dim)
    truth = torch.multinomial(torch.tensor([0.6, 0.3, 0.1]), count, replacement=True, generator=generator)
    return centres[truth] + 0.6 * torch.randn(count, dim, generator=generator), truth.numpy()


def em_in_loops(points: np.ndarray, means: np.ndarray, hard: np.ndarray, dim: float, steps: int) -> np.ndarray:
    count, number = len(points), len(means)
    shares = np.eye(number)[hard]
    for _ in range(steps):
        distances = np.array([[((x - m) ** 2).sum() for m in means] for x in points])
        variance = (shares * distances).sum() / (count * dim)
        weights = shares.mean(axis=0)
        density = weights * np.exp(-distances / (2 * variance))
        shares = density / density.sum(axis=1, keepdims=True)
        means = np.array([(shares[:, k, None] * points).sum(0) / shares[:, k].sum() for k in range(number)])
    return means


@pytest.mark.parametrize("steps", [1, 3, 10])
def test_steps_are_those_of_em(steps, monkeypatch):
    points, _ = overlapping(80)
    monkeypatch.setattr(module, "_START", 0)
    monkeypatch.setattr(module, "effective_dimension", lambda p, *_: torch.full((len(p),), 2.5))
    start = points[:3].clone()
    everything = torch.ones(1, 80, dtype=torch.bool), torch.ones(1, 3, dtype=torch.bool)
    means, _ = mixture(points[None], everything[0], start[None], everything[1], steps)
    hard = torch.cdist(points, start).argmin(dim=1).numpy()
    expected = em_in_loops(points.double().numpy(), start.double().numpy(), hard, 2.5, steps)
    np.testing.assert_allclose(means[0].numpy(), expected, atol=2e-4)


@pytest.mark.parametrize("seed", range(3))
def test_means_are_near_those_of_scikit_learn(seed):
    points, truth = overlapping(400, seed=seed)
    found = cluster(points, 3, method="gmm", restarts=3, iterations=60)
    theirs = GaussianMixture(3, covariance_type="spherical", n_init=3, random_state=0).fit(points.numpy())
    distances = torch.cdist(found.centroids[0], torch.from_numpy(theirs.means_).float())
    assert sorted(distances.argmin(dim=1).tolist()) == [0, 1, 2]
    assert distances.amin(dim=1).max() < 0.25
    ours = adjusted_rand_score(truth, found.assignment[0].numpy())
    assert ours > adjusted_rand_score(truth, theirs.predict(points.numpy())) - 0.05


def test_unequal_overlapping_modes_are_cut_better_than_by_kmeans():
    points, truth = overlapping(2000)
    ours = adjusted_rand_score(truth, cluster(points, 3, method="gmm", restarts=3, iterations=60).assignment[0].numpy())
    assert ours > adjusted_rand_score(truth, cluster(points, 3, restarts=3, iterations=60).assignment[0].numpy())


def test_dimension_of_isotropic_noise_and_of_noise_in_a_plane():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 400, 6, generator=generator)
    noise[1, :, 2:] = 0
    points = torch.cat([noise, torch.zeros(1, 400, 6)])
    zero, hard = torch.zeros(3, 1, 6), torch.zeros(3, 400, dtype=torch.long)
    found = effective_dimension(points, torch.ones(3, 400, dtype=torch.bool), zero, hard)
    assert found[:2].tolist() == pytest.approx([6, 2], rel=0.1)
    assert 1 <= found[2] <= 6


def test_dimension_counts_valid_points_only():
    generator = torch.Generator().manual_seed(0)
    points = torch.randn(1, 300, 5, generator=generator)
    valid = torch.ones(1, 300, dtype=torch.bool)
    valid[0, ::3] = False
    zero = torch.zeros(1, 1, 5)
    found = effective_dimension(points * valid[:, :, None], valid, zero, torch.zeros(1, 300, dtype=torch.long))
    packed = points[:, valid[0]]
    alone = effective_dimension(
        packed, torch.ones(1, 200, dtype=torch.bool), zero, torch.zeros(1, 200, dtype=torch.long)
    )
    torch.testing.assert_close(found, alone)


def test_many_channels_and_few_points_stay_finite():
    points = F.normalize(torch.randn(3, 12, 2048, generator=torch.Generator().manual_seed(0)), dim=2)
    valid = torch.ones(3, 12, dtype=torch.bool)
    valid[1, 1:] = False
    valid[2] = False
    found = cluster(points, 10, method="gmm", valid=valid, iterations=30)
    assert torch.isfinite(found.centroids).all()
    assert int(found.valid[1].sum()) == 1
    assert not found.valid[2].any()
    assert (found.assignment[0] >= 0).all()


def test_large_and_tiny_scales_give_the_same_clusters():
    points, _ = overlapping(200)
    plain, large = (cluster(scale * points, 3, method="gmm") for scale in (1.0, 1e3))
    torch.testing.assert_close(large.centroids / 1e3, plain.centroids, atol=1e-3, rtol=0)


def test_warm_start_follows_modes_that_move_over_epochs(modes):
    points, truth = modes([30] * 4)
    drift = 0.15 * torch.randn(32, generator=torch.Generator().manual_seed(1))
    found = cluster(points, 4, method="gmm", restarts=3)
    first = [truth[found.assignment[0].numpy() == k][0] for k in range(4)]
    for _ in range(5):
        points = F.normalize(points + drift, dim=1)
        found = cluster(points, 4, method="gmm", initial=found.centroids, iterations=3)
    for own, mode in enumerate(first):
        assert set(truth[found.assignment[0].numpy() == own].tolist()) == {mode}
