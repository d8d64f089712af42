"""Principal components against scikit-learn, and what does not depend on their sign."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.projection import Moments, PCAProjection
from rca_lightning.rca.projection import project as project_levels


def cells(count: int = 400, channels: int = 6) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(channels, channels, generator=generator)
    return torch.randn(count, channels, generator=generator) @ mixing * torch.arange(1.0, channels + 1) + 3


def learned(points: torch.Tensor, dim: int, weights: torch.Tensor | None = None) -> PCAProjection:
    moments = Moments(points.shape[1])
    for part in points.split(150):
        moments.add(part)
    projection = PCAProjection(points.shape[1], dim, weights)
    projection.learn(moments)
    return projection


def project(projection: PCAProjection, points: torch.Tensor) -> torch.Tensor:
    return projection(points.T.reshape(1, -1, 1, len(points)))[0, :, 0].T


@pytest.mark.parametrize("dim", [1, 3, 6])
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn(dim, weighted):
    points = cells()
    weights = torch.linspace(0.5, 2, 6) if weighted else torch.ones(6)
    standard = StandardScaler().fit_transform(points.double().numpy()) * weights.numpy()
    expected = PCA(dim, svd_solver="full").fit_transform(standard)
    projection = learned(points, dim, weights if weighted else None)
    found = project(projection, points).double().numpy()
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    assert float(projection.length) == pytest.approx(np.sqrt((expected**2).sum(1).mean()), rel=1e-4)


def test_all_components_keep_the_cosines_between_standardised_cells():
    points = cells()
    standard = (points - points.mean(0)) / points.std(0, correction=0)
    found = project(learned(points, 6), points)
    cosine = torch.nn.functional.cosine_similarity
    torch.testing.assert_close(
        cosine(found[:200], found[200:]), cosine(standard[:200], standard[200:]), atol=1e-3, rtol=0
    )


def test_the_same_components_whatever_the_order_of_the_cells():
    points = cells()
    one, other = learned(points, 4), learned(points.flip(0), 4)
    torch.testing.assert_close(one.weight, other.weight, atol=1e-4, rtol=1e-3)
    assert (one.weight.gather(1, one.weight.abs().argmax(1, keepdim=True)) != 0).all()


def test_a_constant_channel_counts_for_nothing():
    points = cells()
    points[:, 2] = 5
    projection = learned(points, 5)
    assert torch.isfinite(projection.weight).all()
    assert projection.weight[:, 2].abs().max() < 1e-2


def test_state_is_kept():
    projection, other = learned(cells(), 3), PCAProjection(6, 3)
    assert not other.learned
    other.load_state_dict(projection.state_dict())
    assert other.learned
    assert torch.equal(project(other, cells()), project(projection, cells()))
    assert not list(projection.parameters()), "nothing of it is trained"


@pytest.mark.parametrize("dim", [0, 7])
def test_more_components_than_channels_are_refused(dim):
    with pytest.raises(ArgumentError, match=rf"embedding_dim={dim}: give 1 to 6"):
        PCAProjection(6, dim)


def test_cells_that_tell_nothing_are_refused():
    with pytest.raises(ArgumentError, match="moments=1: add at least two cells"):
        learned(cells(1), 2)
    with pytest.raises(ArgumentError, match="moments='non-finite'"):
        learned(cells().index_fill(0, torch.tensor([3]), float("nan")), 2)


def test_channels_that_no_projection_reads_stay_behind_the_projected():
    projection, features = learned(cells(), 3), torch.randn(2, 9, 4, 5)
    [found] = project_levels([projection], [features])
    torch.testing.assert_close(found[:, :3], projection(features[:, :6]))
    assert torch.equal(found[:, 3:], features[:, 6:])
