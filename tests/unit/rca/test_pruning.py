"""Dropping prototypes that score low for their own class."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.clustering.cluster import cluster
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.prototypes import drop_unlike


def bank() -> tuple[torch.Tensor, torch.Tensor]:
    points = F.normalize(torch.randn(3, 30, 6, generator=torch.Generator().manual_seed(0)), dim=2)
    valid = torch.ones(3, 30, dtype=torch.bool)
    valid[2] = False
    return points, valid


@pytest.mark.parametrize("method", ["kmeans", "spherical"])
def test_low_prototypes_go_and_the_others_keep_their_order_and_points(method):
    points, valid = bank()
    before = cluster(points, 4, method=method, valid=valid)
    scores = torch.tensor([[0.9, 0.1, 0.5, 0.7], [0.1, 0.05, 0.3, 0.2], [0.9, 0.9, 0.9, 0.9]])
    after = drop_unlike(before, scores, 0.5)
    assert after.valid.tolist() == [[True, True, True, False], [True, False, False, False], [False] * 4]
    assert torch.equal(after.centroids[0, :3], before.centroids[0, [0, 2, 3]])
    assert torch.equal(after.centroids[1, 0], before.centroids[1, 2])  # the best of a class stays
    assert not after.centroids[~after.valid].any()
    expected = torch.tensor([0, -1, 1, 2])[before.assignment[0]]
    assert torch.equal(after.assignment[0], expected)
    assert torch.equal(after.assignment[1] == 0, before.assignment[1] == 2)
    assert (after.assignment[2] == -1).all()
    assert torch.equal(after.objective, before.objective)


def test_nothing_is_dropped_by_a_low_limit():
    points, valid = bank()
    before = cluster(points, 4, valid=valid)
    after = drop_unlike(before, torch.zeros(3, 4), -1.0)
    assert torch.equal(after.centroids, before.centroids)
    assert torch.equal(after.assignment, before.assignment)
    torch.testing.assert_close(after.objective, before.objective)


def test_scores_of_invalid_prototypes_do_not_count():
    points, _ = bank()
    before = cluster(points[0, :2], 4)
    scores = torch.tensor([[-3.0, -2.0, torch.nan, 9.0]])
    after = drop_unlike(before, scores, 0.0)
    assert after.valid[0].tolist() == [True, False, False, False]
    assert torch.equal(after.centroids[0, 0], before.centroids[0, 1])


@pytest.mark.parametrize("scores", [torch.zeros(3, 5), torch.full((3, 4), torch.nan)])
def test_bad_scores_are_refused(scores):
    points, valid = bank()
    with pytest.raises(ArgumentError, match="scores="):
        drop_unlike(cluster(points, 4, valid=valid), scores, 0.5)
