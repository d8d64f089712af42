"""Merging copies and placing what is free."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import adjusted_rand_score

from rca_lightning.clustering.cluster import cluster
from rca_lightning.clustering.clusters import Clusters, settle
from rca_lightning.clustering.merging import merge_copies, reseed_dead
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.diagnostics import max_cosine


def around(points: torch.Tensor, centroids: torch.Tensor, unit: bool = False) -> Clusters:
    """Clusters `(C, K)` of these centroids, as a clustering that got stuck there would return."""
    every = torch.ones(points.shape[:2], dtype=torch.bool), torch.ones(centroids.shape[:2], dtype=torch.bool)
    return settle(points, every[0], centroids, every[1], backend="torch-cpu", unit=unit)


def stuck(modes, unit: bool = False) -> tuple[torch.Tensor, object, Clusters]:
    """Six modes, three prototypes on the first, one on each of two others, one on all that is left."""
    points, truth = modes([20] * 6)
    inside = points[truth == 0]
    centroids = [inside[0], inside[1], inside[2], points[truth == 1].mean(0), points[truth == 2].mean(0)]
    centroids.append(points[truth > 2].mean(0))
    centroids = torch.stack(centroids)
    return points, truth, around(points[None], (F.normalize(centroids, dim=1) if unit else centroids)[None], unit)


@pytest.mark.parametrize("unit", [False, True])
def test_near_copies_move_to_modes_without_a_prototype(unit, modes):
    points, truth, before = stuck(modes, unit)
    assert float(max_cosine(before.centroids, before.valid)[0]) > 0.8
    after = merge_copies(before, points, None, 0.8)
    assert after.valid.all()
    assert after.unit == unit
    assert adjusted_rand_score(truth, after.assignment[0].numpy()) == 1.0
    assert float(max_cosine(after.centroids, after.valid)[0]) < 0.2
    means = torch.stack([points[after.assignment[0] == k].mean(0) for k in range(6)])
    means = F.normalize(means, dim=1) if unit else means
    torch.testing.assert_close(after.centroids[0], means, atol=1e-5, rtol=0)
    assert float(after.objective[0]) < 0.5 * float(before.objective[0])


def test_copies_with_nowhere_to_go_become_invalid(modes):
    points, truth = modes([20, 20], spread=0.02)
    inside = points[truth == 0]
    before = around(points[None], torch.stack([inside[0], inside[1], inside[2], points[truth == 1].mean(0)])[None])
    after = merge_copies(before, points, None, 0.9)
    assert after.valid[0].tolist() == [True, True, False, False]
    assert not after.centroids[0, 2:].any()
    assert adjusted_rand_score(truth, after.assignment[0].numpy()) == 1.0


@pytest.mark.parametrize("above", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("method", ["kmeans", "spherical", "sinkhorn", "gmm", "farthest"])
def test_no_pair_is_left_above_the_limit(method, above):
    generator = torch.Generator().manual_seed(0)
    points = F.normalize(torch.randn(6, 60, 5, generator=generator) + 0.7, dim=2)
    valid = torch.rand(6, 60, generator=generator) < 0.8
    valid[5] = False
    after = merge_copies(cluster(points, 9, method=method, valid=valid), points, valid, above)
    assert not (max_cosine(after.centroids, after.valid) > above + 1e-6).any()
    assert torch.equal(after.assignment >= 0, valid)
    distances = torch.cdist(points, after.centroids).masked_fill(~after.valid[:, None], torch.inf)
    touched = after.valid.sum(dim=1) < 9
    assert touched[:5].any() or above == 0.9
    for label in torch.nonzero(touched)[:, 0].tolist():
        assert torch.equal(distances[label].argmin(dim=1)[valid[label]], after.assignment[label, valid[label]])
        # A place stays free only if every region has a prototype within the limit.
        unit = F.normalize(after.centroids[label, after.valid[label]], dim=1)
        if after.valid[label].any() and above == 0.9:
            assert (points[label, valid[label]] @ unit.T).amax(dim=1).min() > above - 0.1


def test_copies_merge_to_their_mean_by_size():
    angles = torch.tensor([0.0, 0.0, 0.0, 0.1, -0.2, -0.2, 1.5])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    before = around(points[None], points[None, [0, 3, 4, 6]])
    after = merge_copies(before, points, None, 0.9, refine=0)
    assert after.valid[0].tolist() == [True, True, False, False]
    torch.testing.assert_close(after.centroids[0, 0], points[:6].mean(0))
    assert after.assignment[0].tolist() == [0, 0, 0, 0, 0, 0, 1]


def test_freed_prototype_goes_to_the_region_that_is_covered_worst():
    angles = torch.tensor([0.0, 0.01, 0.02, 0.5, 1.0])
    points = torch.stack([angles.cos(), angles.sin()], dim=1)
    after = merge_copies(around(points[None], points[None, [0, 2]]), points, None, 0.99, refine=0)
    torch.testing.assert_close(after.centroids[0, 1], points[4])


def test_class_without_copies_is_left_as_it_is(modes):
    points, _, before = stuck(modes)
    clean = cluster(modes([20] * 6, seed=1)[0], 6, restarts=3, method="sinkhorn")
    other = modes([20] * 6, seed=1)[0]
    both = Clusters(
        torch.cat([clean.centroids, before.centroids]),
        torch.cat([clean.valid, before.valid]),
        torch.cat([clean.assignment, before.assignment]),
        torch.cat([clean.objective, before.objective]),
        "torch-cpu",
    )
    after = merge_copies(both, torch.stack([other, points]), None, 0.8)
    assert torch.equal(after.centroids[0], clean.centroids[0])
    assert torch.equal(after.assignment[0], clean.assignment[0])
    assert not torch.equal(after.centroids[1], before.centroids[0])
    assert merge_copies(clean, other, None, 0.8) is clean


def test_input_is_not_changed(modes):
    points, _, before = stuck(modes)
    kept = before.centroids.clone(), before.valid.clone(), before.assignment.clone(), points.clone()
    merge_copies(before, points, None, 0.8)
    reseed_dead(Clusters(before.centroids, before.valid, before.assignment, before.objective, ""), points)
    for found, expected in zip((before.centroids, before.valid, before.assignment, points), kept, strict=True):
        assert torch.equal(found, expected)


def test_dead_prototypes_are_placed_at_modes_without_one(modes):
    points, truth = modes([20] * 5)
    centroids = torch.stack([points[truth < 3].mean(0), points[truth > 2].mean(0), *torch.zeros(3, 32)])
    usable = torch.tensor([[True, True, False, False, False]])
    before = settle(points[None], torch.ones(1, 100, dtype=torch.bool), centroids[None], usable, backend="torch-cpu")
    after = reseed_dead(before, points)
    assert after.valid.all()
    assert adjusted_rand_score(truth, after.assignment[0].numpy()) == 1.0


def test_dead_prototypes_stop_at_the_distinct_points_and_at_the_wanted_number():
    base = torch.eye(3)
    points = base[torch.tensor([0, 0, 1, 1, 2, 2])].expand(3, 6, 3).clone()
    valid = torch.ones(3, 6, dtype=torch.bool)
    valid[2] = False
    usable = torch.tensor([[True] + [False] * 4]).repeat(3, 1) & valid.any(dim=1, keepdim=True)
    before = settle(points, valid, points[:, :5].clone(), usable, backend="torch-cpu")
    after = reseed_dead(before, points, valid)
    assert after.valid.sum(dim=1).tolist() == [3, 3, 0]
    torch.testing.assert_close(after.centroids[0, after.assignment[0]], points[0])
    wanted = reseed_dead(before, points, valid, clusters_per_class=torch.tensor([2, 1, 0]))
    assert wanted.valid.sum(dim=1).tolist() == [2, 1, 0]


def test_junk_in_unused_slots_has_no_effect(modes):
    points, _, before = stuck(modes)
    wide = torch.cat([points, torch.full((4, 32), torch.nan)])
    valid = torch.arange(124) < 120
    before.assignment = torch.cat([before.assignment, torch.full((1, 4), -1)], dim=1)
    after, with_mask = merge_copies(before, wide, None, 0.8), merge_copies(before, wide, valid, 0.8)
    assert torch.equal(after.centroids, with_mask.centroids)
    assert (after.assignment[0, 120:] == -1).all()


@pytest.mark.parametrize("above", [1.0, -1.0, 2.0])
def test_limit_out_of_range_is_refused(above, modes):
    points, _, before = stuck(modes)
    with pytest.raises(ArgumentError, match="above="):
        merge_copies(before, points, None, above)


@pytest.mark.parametrize("shape", [(119, 32), (120, 31), (2, 120, 32)])
def test_points_that_do_not_fit_are_refused(shape, modes):
    _, _, before = stuck(modes)
    with pytest.raises(ArgumentError, match="points="):
        merge_copies(before, torch.zeros(shape), None, 0.8)
    with pytest.raises(ArgumentError, match="points="):
        reseed_dead(before, torch.zeros(shape))
