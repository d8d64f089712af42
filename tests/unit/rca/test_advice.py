"""Warnings: each fault by a constructed bank that has it, none for a sound bank or for one measure alone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.cluster import kmeans
from rca_lightning.clustering.clusters import Clusters
from rca_lightning.rca.diagnostics import Diagnostics, diagnose

D, K = 64, 6


def measured(points: Tensor, centroids: Tensor, slots: int | None = None) -> Diagnostics:
    """One class of regions `(N, D)`, each of the nearest of the prototypes `(K, D)`, in a memory of `slots`."""
    slots = slots or len(points)
    bank = torch.zeros(1, slots, D)
    bank[0, : len(points)] = points
    valid = torch.arange(slots)[None] < len(points)
    assignment = (F.normalize(bank, dim=2) @ F.normalize(centroids, dim=1).T).argmax(dim=2).masked_fill(~valid, -1)
    exist = torch.ones(1, len(centroids), dtype=torch.bool)
    found = Clusters(centroids[None], exist, assignment, torch.zeros(1), "torch-cpu")
    return diagnose(bank, valid, found, torch.zeros(1, slots))


def modes() -> Tensor:
    noise = torch.randn(60, D, generator=torch.Generator().manual_seed(0))
    return torch.eye(D)[:6].repeat(10, 1) + 0.05 * noise / D**0.5


def noise(count: int, seed: int = 1) -> Tensor:
    return torch.randn(count, D, generator=torch.Generator().manual_seed(seed))


def only_warning(found: Diagnostics) -> str:
    (warning,) = found.warnings(["cat"])
    assert warning.startswith("cat: ")
    return warning


def test_sound_prototypes_warn_of_nothing():
    assert measured(modes(), torch.eye(D)[:K]).warnings(["cat"]) == []


def test_random_prototypes_warn_by_cosine_and_coverage_together():
    random = noise(K)
    warning = only_warning(measured(modes(), random))
    assert "look diverse but are far from the regions" in warning
    for remedy in ("--memory.iterations", "--memory.slots"):
        assert remedy in warning
    # The very same prototypes, and so the same cosines, where regions lie at them.
    near = random.repeat(10, 1) + 0.1 * noise(60, seed=2)
    assert float(measured(near, random).mean_cosine) == pytest.approx(float(measured(modes(), random).mean_cosine))
    assert measured(near, random).warnings(["cat"]) == []


def test_near_copies_warn_although_they_have_full_rank():
    found = measured(modes(), modes().mean(dim=0) + 0.001 * noise(K))
    assert float(found.effective_rank) > 4.5
    warning = only_warning(found)
    assert "near copies" in warning
    for remedy in ("--model.num_prototypes", "--memory.regions_per_prototype"):
        assert remedy in warning


def test_prototypes_along_a_line_warn_by_their_rank():
    along = torch.eye(D)[0] + torch.linspace(-0.3, 0.3, 60)[:, None] * torch.eye(D)[1]
    found = measured(along, along[::12][:K])
    assert float(found.gain) > 0.5
    assert "near copies" in only_warning(found)


def test_high_cosine_alone_warns_of_nothing():
    # As behind a ReLU: far from the origin, yet six kinds of regions and a prototype for each.
    shifted = modes() + 4 * torch.eye(D)[10]
    found = measured(shifted, torch.eye(D)[:K] + 4 * torch.eye(D)[10])
    assert float(found.mean_cosine) > 0.9
    assert found.warnings(["cat"]) == []


def test_collapse_warns_if_there_are_regions_enough():
    centroids = torch.eye(D)[:K]
    collapsed = centroids[[0] * 57 + [1, 1, 2]] + 0.01 * noise(60)
    warning = only_warning(measured(collapsed, centroids))
    assert "--memory.clustering sinkhorn" in warning
    few = measured(collapsed[-5:], centroids)
    assert int(few.dead) > 0
    assert few.warnings(["cat"]) == []


def test_prototypes_missing_on_purpose_are_no_collapse():
    points = modes()[None]
    valid = torch.ones(1, 60, dtype=torch.bool)
    most = torch.tensor([2])
    two = kmeans(points, 2, backend="torch")
    padded = Clusters(
        F.pad(two.centroids, (0, 0, 0, 8)), F.pad(two.valid, (0, 8)), two.assignment, two.objective, two.backend
    )
    ages = torch.zeros(1, 60)
    assert "sinkhorn" in " ".join(diagnose(points, valid, padded, ages).warnings(["cat"]))
    assert diagnose(points, valid, padded, ages, num_requested=most).warnings(["cat"]) == []


def test_few_regions_warn_if_the_memory_has_room():
    points, centroids = modes()[: K + 2], torch.eye(D)[:K]
    warning = only_warning(measured(points, centroids, slots=100))
    assert "--model.confidence" in warning
    assert measured(points, centroids).warnings(["cat"]) == []
    assert measured(modes(), centroids, slots=500).warnings(["cat"]) == []


def test_one_sentence_names_the_classes_that_have_the_fault():
    points = modes().expand(9, 60, D)
    prototypes = noise(9 * K).reshape(9, K, D)
    prototypes[4] = torch.eye(D)[:K]
    exist = torch.ones(9, K, dtype=torch.bool)
    found = Clusters(prototypes, exist, torch.arange(60).expand(9, 60) % K, torch.zeros(9), "torch-cpu")
    measures = diagnose(points, torch.ones(9, 60, dtype=torch.bool), found, torch.zeros(9, 60))
    (warning,) = measures.warnings([f"class{index}" for index in range(9)])
    assert warning.startswith("class0, class1, class2, class3, class5 and 3 more: ")
    far = torch.arange(9) != 4
    assert f"coverage {float(measures.coverage[far].mean()):.2f})" in warning
