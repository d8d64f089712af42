"""Lloyd's iteration against loops in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.clustering.kmeans import _sums_by_index, _sums_by_product, lloyd, means, nearest

C, N, K, D = 3, 30, 4, 5


def problem(seed: int = 0, *, holes: bool = True) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Points, which are valid, centroids, which are usable; with `holes` the last class has no valid point."""
    random = torch.Generator().manual_seed(seed)
    points, centroids = torch.randn(C, N, D, generator=random), torch.randn(C, K, D, generator=random)
    valid, usable = torch.rand(C, N, generator=random) < 0.7, torch.ones(C, K, dtype=torch.bool)
    if not holes:
        return points, torch.ones_like(valid), centroids, usable
    valid[-1], usable[0, 1], usable[1, 0] = False, False, False
    return points, valid, centroids, usable


def nearest_by_loops(points: torch.Tensor, centroids: torch.Tensor, usable: torch.Tensor) -> list[list[int]]:
    def of(c: int, n: int) -> int:
        found = [((points[c, n] - centroids[c, k]).double().square().sum(), k) for k in range(K) if usable[c, k]]
        return min(found)[1]

    return [[of(c, n) for n in range(N)] for c in range(C)]


def mean_by_loops(points, valid, assignment, fallback, *, unit: bool) -> torch.Tensor:
    found = fallback.double().clone()
    for c in range(C):
        for k in range(K):
            own = [points[c, n].double() for n in range(N) if valid[c, n] and assignment[c, n] == k]
            if own:
                mean = torch.stack(own).mean(dim=0)
                found[c, k] = mean / mean.norm() if unit else mean
    return found


@pytest.mark.parametrize("seed", range(3))
def test_nearest_is_the_usable_centroid_at_the_smallest_distance(seed):
    points, _, centroids, usable = problem(seed)
    assert nearest(points, centroids, usable).tolist() == nearest_by_loops(points, centroids, usable)


@pytest.mark.parametrize("holes", [True, False])
@pytest.mark.parametrize("unit", [True, False])
def test_means_are_of_the_valid_points_and_fall_back_where_there_are_none(unit, holes):
    points, valid, centroids, usable = problem(holes=holes)
    assignment = nearest(points, centroids, usable)
    assignment[0][assignment[0] == 2] = 3  # one more cluster without a point
    found = means(points, valid, assignment, centroids, unit=unit)
    assert torch.equal(found[0, 2], centroids[0, 2])
    if holes:
        assert torch.equal(found[-1], centroids[-1])
    expected = mean_by_loops(points, valid, assignment, centroids, unit=unit)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)
    if not unit:
        assert torch.equal(found, means(points, valid, assignment, centroids))


def test_steps_are_as_many_as_asked_for_and_end_where_nothing_moves():
    points, valid, centroids, usable = problem()
    found = centroids
    for steps in range(4):
        torch.testing.assert_close(lloyd(points, valid, centroids, usable, steps), found, rtol=1e-5, atol=1e-6)
        assignment = torch.tensor(nearest_by_loops(points, found, usable))
        found = mean_by_loops(points, valid, assignment, found, unit=False).float()
    settled = lloyd(points, valid, centroids, usable, 100)
    assert torch.equal(lloyd(points, valid, settled, usable, 1), settled)
    assert not torch.equal(settled, centroids)


def test_unit_keeps_centroids_on_the_sphere():
    points, valid, centroids, usable = problem()
    points, centroids = F.normalize(points, dim=2), F.normalize(centroids, dim=2)
    found = lloyd(points, valid, centroids, usable, 10, unit=True)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(C, K))
    assert not torch.allclose(lloyd(points, valid, centroids, usable, 10).norm(dim=2), torch.ones(C, K))


@pytest.mark.parametrize("holes", [True, False])
def test_sums_of_a_gpu_are_those_of_a_processor(holes):
    points, valid, centroids, usable = problem(holes=holes)
    given = points, valid, nearest(points, centroids, usable), K
    for found, expected in zip(_sums_by_product(*given), _sums_by_index(*given), strict=True):
        torch.testing.assert_close(found, expected)
    assert _sums_by_index(*given)[1].sum(dim=(1, 2)).tolist() == valid.sum(dim=1).tolist()
