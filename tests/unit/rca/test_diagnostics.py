"""Diagnostics of prototypes and memory against float64 loops, and on arrangements with known answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from rca_lightning.clustering.cluster import kmeans
from rca_lightning.clustering.clusters import Clusters
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.diagnostics import Diagnostics, diagnose
from rca_lightning.rca.memory_bank import RegionMemory

C, N, K, D = 5, 12, 4, 6
NAMES = ["cat", "dog", "cow", "car", "bus"]
REGIONS = (12, 7, 3, 1, 0)


def clusters(centroids: Tensor, valid: Tensor, assignment: Tensor) -> Clusters:
    return Clusters(centroids, valid, assignment, torch.zeros(len(valid)), "torch-cpu")


def example() -> tuple[Tensor, Tensor, Clusters, Tensor]:
    """Classes with 12, 7, 3, 1 and 0 regions and 4, 3, 2, 1 and 0 prototypes; garbage in the free slots."""
    generator = torch.Generator().manual_seed(0)
    points = 3 * torch.randn(C, N, D, generator=generator) + 1
    valid = torch.arange(N)[None] < torch.tensor(REGIONS)[:, None]
    prototypes = torch.randn(C, K, D, generator=generator) + 0.5
    exist = torch.arange(K)[None] < torch.tensor([4, 3, 2, 1, 0])[:, None]
    # Of the second class's prototypes the last has no region.
    assignment = torch.randint(0, 4, (C, N), generator=generator) % torch.tensor([4, 2, 2, 1, 1])[:, None]
    ages = torch.randint(0, 50, (C, N), generator=generator)
    points[~valid] = torch.nan
    return (
        points,
        valid,
        clusters(prototypes * exist[:, :, None], exist, assignment.masked_fill(~valid, -1)),
        ages.masked_fill(~valid, -1),
    )


def cosine(first: np.ndarray, second: np.ndarray) -> float:
    return float(first @ second / np.linalg.norm(first) / np.linalg.norm(second))


def by_loops(points: Tensor, valid: Tensor, found: Clusters, ages: Tensor, label: int) -> dict[str, float]:
    """The measures of one class with at least one region and one prototype, straight from their definitions."""
    regions = [row for row, keep in zip(points[label].double().numpy(), valid[label], strict=True) if keep]
    prototypes = [
        row for row, keep in zip(found.centroids[label].double().numpy(), found.valid[label], strict=True) if keep
    ]
    pairs = [cosine(a, b) for i, a in enumerate(prototypes) for b in prototypes[:i]]
    nearest = [max(cosine(region, prototype) for prototype in prototypes) for region in regions]
    middle = sum(region / np.linalg.norm(region) for region in regions)
    single = float(np.mean([cosine(region, middle) for region in regions]))
    coverage = float(np.mean(nearest))
    labels = found.assignment[label].tolist()
    sizes = [labels.count(k) for k in range(K)]
    shares = [size / len(regions) for size in sizes if size]
    return {
        "mean_cosine": float(np.mean(pairs)) if pairs else math.nan,
        "max_cosine": max(pairs) if pairs else math.nan,
        "coverage": coverage,
        "gain": 1 - (1 - coverage) / (1 - single) if len(regions) > 1 else math.nan,
        "assignment_entropy": -sum(share * math.log(share) for share in shares) / math.log(K),
        "dead": sizes.count(0),
        "fill": len(regions) / N,
        "mean_age": float(np.mean([age for age in ages[label].tolist() if age >= 0])),
        "regions": len(regions),
        "prototypes": len(prototypes),
    }


def test_every_measure_by_loops():
    arguments = example()
    found = diagnose(*arguments)
    for label in range(4):
        for name, expected in by_loops(*arguments, label).items():
            value = float(getattr(found, name)[label])
            assert value == pytest.approx(expected, abs=1e-5, nan_ok=True), (label, name)


def test_a_class_without_regions_has_counts_and_nothing_else():
    found = diagnose(*example()).as_dict(NAMES)["bus"]
    counts = {name: found.pop(name) for name in ("regions", "prototypes", "num_requested", "dead", "fill")}
    assert counts == {"regions": 0, "prototypes": 0, "num_requested": K, "dead": K, "fill": 0.0}
    assert set(found.values()) == {None}


def test_regions_left_without_a_prototype_are_not_covered():
    points, valid, given, ages = example()
    given.valid[0], given.assignment[0] = False, -1
    found = diagnose(points, valid, given, ages)
    for name in ("coverage", "gain", "assignment_entropy", "mean_cosine", "effective_rank"):
        assert torch.isnan(getattr(found, name)[0]), name
    assert found.dead[0] == K


def test_one_prototype_a_class_is_evenly_used():
    points, valid, _, ages = example()
    points = points.nan_to_num()
    found = diagnose(points, valid, kmeans(points, 1, valid=valid, backend="torch"), ages)
    assert found.assignment_entropy[:4].tolist() == [1.0] * 4
    assert torch.isnan(found.assignment_entropy[4])
    assert not any(math.isnan(value) for value in found.logged("p").values())


def test_prototypes_that_were_not_asked_for_are_not_dead():
    points, valid, given, ages = example()
    found = diagnose(points, valid, given, ages, num_requested=given.valid.sum(dim=1))
    assert found.dead.tolist() == [0, 1, 0, 0, 0]
    expected = by_loops(points, valid, given, ages, 2)["assignment_entropy"] * math.log(K) / math.log(2)
    assert float(found.assignment_entropy[2]) == pytest.approx(expected, abs=1e-5)
    assert float(found.assignment_entropy[3]) == 1.0


def modes(seed: int = 0, spread: float = 0.05) -> Tensor:
    """60 regions around six directions at right angles, `(1, 60, 64)`."""
    noise = torch.randn(60, 64, generator=torch.Generator().manual_seed(seed))
    return (torch.eye(64)[:6].repeat(10, 1) + spread * noise / 8)[None]


def of_one_class(points: Tensor, centroids: Tensor) -> Diagnostics:
    """Diagnostics of regions that each belong to the nearest of given prototypes."""
    unit = torch.nn.functional.normalize
    assignment = (unit(points, dim=2) @ unit(centroids, dim=2).transpose(1, 2)).argmax(dim=2)
    everywhere = torch.ones(assignment.shape, dtype=torch.bool)
    exist = torch.ones(centroids.shape[:2], dtype=torch.bool)
    return diagnose(points, everywhere, clusters(centroids, exist, assignment), torch.zeros(assignment.shape))


def test_six_modes_have_six_prototypes():
    points = modes()
    everywhere = torch.ones(1, 60, dtype=torch.bool)
    found = diagnose(points, everywhere, kmeans(points, 6, backend="torch"), torch.full((1, 60), 3))
    assert abs(float(found.mean_cosine)) < 0.02
    assert float(found.effective_rank) == pytest.approx(5, abs=0.01)
    assert float(found.coverage) > 0.99
    assert float(found.gain) > 0.98
    assert float(found.assignment_entropy) == pytest.approx(1)
    assert (int(found.dead), float(found.fill), float(found.mean_age)) == (0, 1.0, 3.0)


def test_random_vectors_are_the_most_diverse_and_cover_nothing():
    points = modes()
    random = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))
    found, good = of_one_class(points, random), of_one_class(points, torch.eye(64)[None, :6])
    assert abs(float(found.mean_cosine)) < 0.05
    assert float(found.effective_rank) > 4.8
    assert float(found.coverage) < 0.4
    assert float(found.gain) < 0.1
    # By cosine alone the good prototypes are no better.
    assert abs(float(good.mean_cosine)) < 0.05
    assert float(good.coverage) > 0.99


def test_near_copies_gain_nothing_over_one_prototype():
    points = modes()
    noise = torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(1))
    found = of_one_class(points, points.mean(dim=1, keepdim=True) + 0.001 * noise)
    assert float(found.mean_cosine) > 0.99
    assert float(found.effective_rank) > 4.5
    assert float(found.gain) < 0.05


def test_logged_is_the_mean_over_classes_that_have_a_value():
    found = diagnose(*example())
    logged = found.logged("prototypes")
    assert logged["prototypes/fill"] == pytest.approx(sum(REGIONS) / N / 4)
    assert logged["prototypes/max_cosine"] == pytest.approx(float(found.max_cosine[:3].mean()))
    assert logged["prototypes/between_class_cosine"] == pytest.approx(float(found.between_class_cosine))
    assert set(logged) == {
        f"prototypes/{name}"
        for name in (
            "mean_cosine", "max_cosine", "effective_rank", "coverage", "gain", "assignment_entropy", "dead", "fill",
            "mean_age", "between_class_cosine",
        )
    }  # fmt: skip


def test_nothing_is_logged_of_an_empty_memory():
    points, valid = torch.zeros(2, N, D), torch.zeros(2, N, dtype=torch.bool)
    found = diagnose(points, valid, kmeans(points, K, valid=valid, backend="torch"), torch.full((2, N), -1))
    assert found.logged("p") == {}
    assert found.warnings(["cat", "dog"]) == []


def test_as_dict_is_json_and_says_none_for_nan():
    text = json.dumps(diagnose(*example()).as_dict(NAMES), allow_nan=False)
    content = json.loads(text)
    assert list(content) == NAMES
    assert content["car"]["mean_cosine"] is None
    assert content["cat"]["regions"] == 12
    assert "between_class_cosine" not in content["cat"]


def test_from_a_memory_and_its_clusters():
    memory = RegionMemory(num_classes=2, slots=8, dim=4)
    memory.enqueue(torch.eye(4)[[0, 1, 1]], torch.tensor([0, 0, 0]), ["a", "b", "c"], step=5)
    found = kmeans(memory.embeddings, 3, valid=memory.valid, backend="torch")
    ages = torch.where(memory.steps >= 0, 9 - memory.steps, -1)
    measured = diagnose(memory.embeddings, memory.valid, found, ages)
    assert measured.as_dict(["cat", "dog"])["cat"] == {
        "regions": 3, "prototypes": 2, "num_requested": 3, "mean_cosine": 0.0, "max_cosine": 0.0,
        "effective_rank": 1.0, "coverage": 1.0, "gain": 1.0, "dead": 1, "fill": 0.375, "mean_age": 4.0,
        "assignment_entropy": pytest.approx((math.log(3) - 2 / 3 * math.log(2)) / math.log(3)),
    }  # fmt: skip


@pytest.mark.parametrize("names", [["cat"], ["cat"] * C])
def test_names_must_tell_the_classes_apart(names):
    found = diagnose(*example())
    for use in (found.as_dict, found.warnings):
        with pytest.raises(ArgumentError, match="class_names="):
            use(names)


def test_shapes_must_fit():
    points, valid, given, ages = example()
    for wrong in (
        (points[:, 1:], valid, given, ages),
        (points, valid[1:], given, ages),
        (points[:, :, 1:], valid, given, ages),
        (points, valid, given, ages[:, 1:]),
    ):
        with pytest.raises(ArgumentError, match="points, valid, clusters, ages, num_requested="):
            diagnose(*wrong)
    with pytest.raises(ArgumentError, match="num_requested"):
        diagnose(points, valid, given, ages, num_requested=torch.ones(3))
