"""Temperature of each prototype, against the formula in loops."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.clustering.cluster import cluster
from rca_lightning.clustering.clusters import settle
from rca_lightning.clustering.concentration import concentration
from rca_lightning.errors import ArgumentError


def known(sizes, spreads, dim: int = 16, seed: int = 0):
    """One class with clusters of these sizes, whose points lie at these distances from their centroid."""
    generator = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(dim, len(sizes), generator=generator))[0].T
    points, owner = [], []
    for index, (size, spread) in enumerate(zip(sizes, spreads, strict=True)):
        points.append(axes[index] + spread * F.normalize(torch.randn(size, dim, generator=generator), dim=1))
        owner += [index] * size
    points, owner = torch.cat(points)[None], torch.tensor(owner)[None]
    every = torch.ones_like(owner, dtype=torch.bool), torch.ones(1, len(sizes), dtype=torch.bool)
    return points, settle(points, every[0], axes[None], every[1], backend="", assignment=owner)


def test_ratios_are_those_of_the_formula():
    sizes, spreads = [10, 20, 40], [0.30, 0.24, 0.28]
    points, clusters = known(sizes, spreads)
    phi = [size * spread / (size * math.log(size + 10)) for size, spread in zip(sizes, spreads, strict=True)]
    mean = sum(phi) / 3
    found = concentration(points, clusters)
    assert found[0].tolist() == pytest.approx([value / mean for value in phi], rel=1e-4)
    assert float(found.mean()) == pytest.approx(1, abs=1e-5)


def test_wide_and_small_clusters_are_warmer():
    found = concentration(*known([30, 30, 10], [0.2, 0.3, 0.2]))[0]
    assert found[0] < found[2]
    assert found[0] < found[1]


def test_mean_is_one_after_clipping():
    points, clusters = known([20] * 6, [0.001, 0.2, 0.2, 0.25, 0.3, 3.0])
    found = concentration(points, clusters, bounds=(0.6, 1.5))
    assert float(found.min()) == pytest.approx(0.6)
    assert float(found.max()) == pytest.approx(1.5)
    assert float(found.mean()) == pytest.approx(1, abs=1e-4)


def test_few_points_get_the_mean_of_their_class():
    points, clusters = known([20, 20, 2, 1], [0.2, 0.4, 0.9, 0.0])
    found = concentration(points, clusters)[0]
    assert found[2] == found[3]
    assert float(found[2]) == pytest.approx(float(found[:2].mean()))


def test_class_of_few_points_and_empty_class_get_one():
    points = F.normalize(torch.randn(3, 40, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    valid = torch.ones(3, 40, dtype=torch.bool)
    valid[1, 2:] = False
    valid[2] = False
    points[2] = torch.nan
    found = concentration(points, cluster(points, 4, valid=valid))
    assert (found[1:] == 1).all()
    assert not (found[0] == 1).all()


def test_copies_without_spread_get_one():
    points = torch.eye(3).repeat(5, 1)
    assert (concentration(points, cluster(points, 3)) == 1).all()


def test_one_cluster_without_spread_is_clipped():
    points, clusters = known([20, 20], [0.0, 0.3])
    found = concentration(points, clusters)[0]
    assert found.tolist() == pytest.approx([0.5, 1.5], abs=1e-4)


@pytest.mark.parametrize("method", ["kmeans", "spherical", "sinkhorn", "gmm", "farthest"])
def test_within_bounds_for_every_method(method):
    points = 3 * F.normalize(torch.randn(4, 60, 8, generator=torch.Generator().manual_seed(0)), dim=2)
    found = concentration(points, cluster(points, 5, method=method))
    assert found.shape == (4, 5)
    assert ((found >= 0.5) & (found <= 2)).all()
    assert float(found.mean()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("options", [{"bounds": (1.5, 2.0)}, {"bounds": (0.0, 2.0)}, {"alpha": 0.5}])
def test_bad_arguments_are_named(options):
    with pytest.raises(ArgumentError, match=next(iter(options))):
        concentration(*known([5], [0.1]), **options)
