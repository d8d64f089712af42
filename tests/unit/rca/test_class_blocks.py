"""A memory that is clustered a few classes at a time gives the prototypes of one that is clustered whole."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.clustering import cluster as clustering
from rca_lightning.clustering.cluster import kmeans
from rca_lightning.clustering.kmeans import PerClassGenerator
from rca_lightning.rca import prototypes as blocks
from rca_lightning.rca.diagnostics import diagnose
from rca_lightning.rca.prototypes import Prototypes, class_blocks, make_prototypes

C, N, D, K = 5, 24, 8, 4


def bank() -> tuple[torch.Tensor, torch.Tensor]:
    points = F.normalize(torch.randn(C, N, D, generator=torch.Generator().manual_seed(0)), dim=2)
    points[:, : N // 2] = points[:, :1]  # copies
    valid = torch.arange(N)[None] < torch.tensor([24, 20, 3, 0, 16])[:, None]
    return points * valid[:, :, None], valid


def at_a_time(classes: int, monkeypatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 4 * N * D * classes)


def made(points: torch.Tensor, valid: torch.Tensor, **options: Any) -> Prototypes:
    given = {"clustering": "kmeans", "backend": "torch", "iterations": 20, "seed": 0} | options
    return make_prototypes(points, valid, K, **given)


def same(found: Prototypes, expected: Prototypes, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(found.vectors, expected.vectors, atol=tolerance, rtol=0)
    for name in ("valid", "num_requested"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    assert torch.equal(found.clusters.assignment, expected.clusters.assignment)
    torch.testing.assert_close(found.clusters.objective, expected.clusters.objective, atol=10 * tolerance, rtol=0)


def test_blocks_of_the_cache_within_blocks_of_the_memory_start_from_the_seeds_of_the_whole(monkeypatch):
    points, valid = bank()
    expected = made(points, valid, seed=7)
    at_a_time(2, monkeypatch)
    monkeypatch.setattr(clustering, "CACHED_BYTES", 1)  # one class at a time on one thread
    same(made(points, valid, seed=7), expected)


def test_clusterings_start_from_seed_0_unless_told_otherwise():
    points, valid = bank()
    for run in (clustering.cluster, clustering.kmeans):
        named, default = (
            run(points, K, valid=valid, iterations=0, backend="torch", **seed) for seed in ({"seed": 0}, {})
        )
        assert torch.equal(named.centroids, default.centroids)
        assert not torch.equal(
            run(points, K, valid=valid, iterations=0, backend="torch", seed=-1).centroids, named.centroids
        )


@pytest.mark.parametrize("classes", [1, 2, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"clustering": "spherical"},
        {"clustering": "sinkhorn", "regions_per_prototype": 8},
        {"drop_below": 0.5},
    ],
)
def test_prototypes(classes, options, monkeypatch):
    points, valid = bank()
    score = lambda vectors: vectors[:, :, 0].sigmoid()  # noqa: E731
    expected = made(points, valid, seed=7, score=score, **options)
    assert expected.valid.any(dim=1).tolist() == [True, True, True, False, True]
    at_a_time(classes, monkeypatch)
    same(made(points, valid, seed=7, score=score, **options), expected)


@pytest.mark.parametrize("classes", [1, C])
def test_half_precision_is_clustered_in_single_precision(classes, monkeypatch):
    points, valid = bank()
    at_a_time(classes, monkeypatch)
    found = made(points.half(), valid)
    same(found, made(points.half().float(), valid))
    assert found.vectors.dtype == torch.float32
    assert kmeans(points.half(), K, valid=valid, backend="torch").centroids.dtype == torch.float32
    ages = torch.zeros(C, N)
    measured = diagnose(points.half(), valid, found.clusters, ages).coverage
    expected = diagnose(points, valid, made(points, valid).clusters, ages).coverage
    torch.testing.assert_close(measured, expected, atol=1e-3, rtol=0, equal_nan=True)


def test_blocks_are_bounded_and_cover_every_class(monkeypatch):
    points, valid = bank()
    at_a_time(2, monkeypatch)
    found = list(class_blocks(points.half(), valid, torch.device("cpu")))
    assert [(rows.start, rows.stop) for rows, _, _ in found] == [(0, 2), (2, 4), (4, 5)]
    assert all(part.dtype == torch.float32 for _, part, _ in found)
    assert torch.equal(torch.cat([part for _, part, _ in found]), points.half().float())
    assert torch.equal(torch.cat([used for _, _, used in found]), valid)
    monkeypatch.setattr(blocks, "BLOCK_BYTES", 1)
    assert len(list(class_blocks(points, valid, torch.device("cpu")))) == C  # a class is never split


def test_blocks_go_to_the_device():
    points, valid = bank()
    ((_, part, used),) = class_blocks(points.half(), valid, torch.device("meta"))
    assert {part.device.type, used.device.type} == {"meta"}


def test_draws_of_some_classes_are_those_of_all():
    whole, part = PerClassGenerator(3, 5), PerClassGenerator(3, 5, first=1, wanted=2)
    for count in (1, 4, 2):
        assert torch.equal(part.uniform(count), whole.uniform(count)[1:3])
