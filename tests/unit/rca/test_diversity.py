"""Diversity of prototypes against loops over pairs."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from rca_lightning.rca.diagnostics import (
    between_class_cosine,
    effective_rank,
    max_cosine,
    within_class_cosine,
)

C, K, D = 4, 5, 6


def example() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    prototypes = 2 * torch.randn(C, K, D, generator=generator) + 0.5
    valid = torch.zeros(C, K, dtype=torch.bool)
    for label, count in enumerate((5, 3, 1, 0)):
        valid[label, :count] = True
    return prototypes, valid


def cosine(first: torch.Tensor, second: torch.Tensor) -> float:
    first, second = first.double(), second.double()
    return float(first @ second / (first.norm() * second.norm()))


def test_within_class_by_pairs():
    prototypes, valid = example()
    found = within_class_cosine(prototypes, valid)
    for label in range(2):
        used = prototypes[label, valid[label]]
        pairs = [cosine(used[i], used[j]) for i in range(len(used)) for j in range(len(used)) if i != j]
        assert float(found[label]) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)
    assert torch.isnan(found[2:]).all()


def test_max_is_that_of_the_closest_pair():
    prototypes, valid = example()
    found = max_cosine(prototypes, valid)
    for label, count in enumerate((5, 3)):
        used = prototypes[label]
        expected = max(cosine(used[i], used[j]) for i in range(count) for j in range(i))
        assert float(found[label]) == pytest.approx(expected, abs=1e-5)
    assert torch.isnan(found[2:]).all()


def test_effective_rank_by_singular_values():
    prototypes, valid = example()
    found = effective_rank(prototypes, valid)
    for label in range(2):
        used = prototypes[label, valid[label]].double().numpy()
        used = used / np.linalg.norm(used, axis=1, keepdims=True)
        singular = np.linalg.svd(used - used.mean(axis=0), compute_uv=False)
        share = singular[singular > 1e-12] / singular.sum()
        assert float(found[label]) == pytest.approx(math.exp(-(share * np.log(share)).sum()), abs=1e-4)
    assert torch.isnan(found[2:]).all()


def test_effective_rank_of_known_arrangements():
    axes = torch.eye(D)[:K]  # regular simplex: equally far in K - 1 directions
    angles = torch.linspace(0, 1, K)
    arc = torch.zeros(K, D)
    arc[:, 0], arc[:, 1] = angles.cos(), angles.sin()
    copies = torch.rand(D, generator=torch.Generator().manual_seed(2)).expand(K, D)
    jitter = copies + 1e-3 * axes
    pair = torch.cat([axes[:1].expand(3, D), axes[1:2].expand(2, D)])
    prototypes = torch.stack([axes, arc, copies, jitter, pair])
    found = effective_rank(prototypes, torch.ones(5, K, dtype=torch.bool)).tolist()
    assert found[0] == pytest.approx(K - 1, abs=1e-4)
    assert 1 < found[1] < 2
    assert found[2] == 1
    # It does not see how small the differences are: why a warning needs more than the rank.
    assert found[3] > K - 1.5
    assert found[4] == pytest.approx(1, abs=1e-3)


def test_copies_have_cosine_one():
    prototypes = torch.ones(1, 4, D)
    assert float(within_class_cosine(prototypes, torch.ones(1, 4, dtype=torch.bool))) == pytest.approx(1, abs=1e-6)


def test_between_classes_by_pairs():
    prototypes, valid = example()
    pairs = [
        cosine(prototypes[a, i], prototypes[b, j])
        for a in range(C)
        for b in range(C)
        if a != b
        for i in range(K)
        for j in range(K)
        if valid[a, i] and valid[b, j]
    ]
    assert float(between_class_cosine(prototypes, valid)) == pytest.approx(sum(pairs) / len(pairs), abs=1e-5)


def test_between_needs_two_classes():
    prototypes, valid = example()
    valid[1:] = False
    assert math.isnan(float(between_class_cosine(prototypes, valid)))
