"""Greedy k-means++ against loops in float64, with the same random numbers."""

from __future__ import annotations

import math

import pytest
import torch

from rca_lightning.clustering.kmeans import PerClassGenerator, greedy_seeds

C, N, K, D = 3, 24, 5, 4
Rows = list[list[float]]


class Loops:
    """One point after another, one class after another; points are lists of numbers."""

    def __init__(self, points: torch.Tensor, valid: torch.Tensor, draws: PerClassGenerator) -> None:
        self.points, self.valid, self.draws = points.double().tolist(), valid.tolist(), draws

    def distances(self, c: int, centroid: list[float]) -> list[float]:
        """Squared; 0 for copies, also those that float32 has moved, and for points that do not count."""
        squared = [sum((x - y) ** 2 for x, y in zip(point, centroid, strict=True)) for point in self.points[c]]
        lengths = [sum(x**2 for x in point) for point in self.points[c]]
        return [
            d if used and d > 1e-6 * length else 0.0
            for d, length, used in zip(squared, lengths, self.valid[c], strict=True)
        ]

    def drawn(self, weights: Rows, count: int) -> list[list[int]]:
        found = []
        for row, numbers in zip(weights, self.draws.uniform(count).tolist(), strict=True):
            total, own = sum(row), []
            for number in numbers:
                passed = [n for n in range(N) if sum(row[: n + 1]) > number * total]
                own.append(passed[0] if passed else 0)
            found.append(own)
        return found

    def first(self) -> list[int]:
        return [own[0] for own in self.drawn([[float(used) for used in row] for row in self.valid], 1)]

    def next(self, nearest: Rows) -> list[int]:
        """Of `2 + log K` drawn candidates the one that leaves the smallest sum of distances, in every class."""
        candidates = self.drawn(nearest, 2 + int(math.log(K)))

        def left(c: int, n: int) -> float:
            return sum(map(min, nearest[c], self.distances(c, self.points[c][n])))

        return [min(own, key=lambda n, c=c: left(c, n)) for c, own in enumerate(candidates)]


def problem(seed: int, *, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """The last class has three distinct valid points, each several times."""
    random = torch.Generator().manual_seed(seed)
    points = scale * torch.randn(C, N, D, generator=random)
    valid = torch.rand(C, N, generator=random) < 0.8
    points[-1] = points[-1, torch.arange(N) % 3]
    return points, valid


@pytest.mark.parametrize("scale", [1.0, 1e3])
@pytest.mark.parametrize("seed", range(4))
def test_greedy_seeds_by_loops(seed, scale):
    points, valid = problem(seed, scale=scale)
    found, distinct = greedy_seeds(points, valid, K, PerClassGenerator(seed, C))
    loops = Loops(points, valid, PerClassGenerator(seed, C))
    chosen = [loops.first()]
    nearest = [loops.distances(c, loops.points[c][n]) for c, n in enumerate(chosen[0])]
    expected = [[True] * C]
    for _ in range(1, K):
        expected.append([any(row) for row in nearest])
        chosen.append(loops.next(nearest))
        nearest = [list(map(min, nearest[c], loops.distances(c, loops.points[c][n]))) for c, n in enumerate(chosen[-1])]
    assert distinct.T.tolist() == expected
    assert distinct.sum(dim=1).tolist() == [K, K, 3]
    for c in range(C):
        for k in range(K):
            if distinct[c, k]:
                assert torch.equal(found[c, k], points[c, chosen[k][c]])
