"""Prototypes from a memory: which steps run, and what comes out where the answer is known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.clustering.cluster import kmeans
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.prototypes import Prototypes, make_prototypes


def made(points: torch.Tensor, valid: torch.Tensor, number: int, **options: Any) -> Prototypes:
    given = {"clustering": "kmeans", "backend": "torch", "iterations": 20, "seed": 0} | options
    return make_prototypes(points, valid, number, **given)


def modes(count: int, each: int = 8, dim: int = 16, noise: float = 0.02) -> torch.Tensor:
    """`(count * each, dim)` unit vectors around `count` axes."""
    centres = torch.eye(dim)[:count].repeat_interleave(each, dim=0)
    return F.normalize(
        centres + noise * torch.randn(count * each, dim, generator=torch.Generator().manual_seed(0)), dim=1
    )


def bank() -> tuple[torch.Tensor, torch.Tensor]:
    """Six modes, two modes, three regions, none: `(4, 48, 16)` and which slots are valid."""
    points, valid = torch.zeros(4, 48, 16), torch.zeros(4, 48, dtype=torch.bool)
    for row, found in enumerate((modes(6), modes(2), modes(3, each=1))):
        points[row, : len(found)], valid[row, : len(found)] = found, True
    return points, valid


def test_default_is_k_means_scaled_to_unit_length():
    points, valid = bank()
    found = made(points, valid, 6, seed=3)
    expected = kmeans(points, 6, valid=valid, seed=3, backend="torch")
    torch.testing.assert_close(found.vectors, F.normalize(expected.centroids, dim=2))
    assert torch.equal(found.valid, expected.valid)
    assert found.valid.sum(dim=1).tolist() == [6, 6, 3, 0]
    torch.testing.assert_close(found.vectors.norm(dim=2), found.valid.float())


@pytest.mark.parametrize("clustering", ["kmeans", "spherical", "sinkhorn"])
def test_every_method_finds_six_modes(clustering):
    points, valid = bank()
    found = made(points[:1], valid[:1], 6, clustering=clustering)
    nearest = (found.vectors[0] @ torch.eye(16)[:6].T).amax(dim=0)
    assert (nearest > 0.98).all()


def test_one_slot_a_class_is_enough():
    points, valid = bank()
    found = made(points[:, :1], valid[:, :1], 6)
    assert found.valid.sum(dim=1).tolist() == [1, 1, 1, 0]
    assert found.num_requested.tolist() == [6, 6, 6, 6]


def test_classes_of_few_regions_get_fewer():
    points, valid = bank()
    found = made(points, valid, 6, regions_per_prototype=8)
    assert found.valid.sum(dim=1).tolist() == found.num_requested.tolist() == [6, 2, 1, 0]


def test_low_scores_are_dropped_but_never_all():
    points, valid = bank()

    def score(vectors: torch.Tensor) -> torch.Tensor:
        lengths = vectors.norm(dim=2)
        torch.testing.assert_close(lengths, (lengths > 0).float())
        return (vectors[:, :, 0] > 0.5).float()  # only the first axis is believed

    found = made(points, valid, 6, drop_below=0.5, score=score)
    assert found.valid.sum(dim=1)[0] == 1
    assert found.vectors[0, 0, 0] > 0.98
    assert found.valid.any(dim=1).tolist() == [True, True, True, False]


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"iterations": 0}, "give at least 1"),
        ({"regions_per_prototype": 0}, "give at least 1"),
        ({"drop_below": 1.1}, "give a probability"),
        ({"drop_below": -0.1}, "give a probability"),
        ({"clustering": "dbscan"}, "give one of kmeans"),
        ({"clustering": "gmm"}, r"gone since 0\.2; give one of kmeans"),
        ({"restarts": 5}, r"gone since 0\.2; greedy"),
        ({"warm_start": True}, r"gone since 0\.2"),
        ({"reseed": True}, r"gone since 0\.2; clustering='sinkhorn'"),
        ({"merge_above": 0.9}, r"gone since 0\.2; regions_per_prototype"),
        ({"concentration": False}, r"gone since 0\.2; .*attention_temperature"),
        ({"rule": "ema_ring"}, r"gone since 0\.2; the memory is first in"),
    ],
)
def test_wrong_and_removed_arguments_are_named_at_once(wrong, remedy):
    with pytest.raises(ArgumentError, match=f"{next(iter(wrong))}=.*: {remedy}"):
        RegionMemoryCallback(**wrong)


@pytest.mark.parametrize("bound", [{"drop_below": 0}, {"drop_below": 1}, {"iterations": 1}])
def test_bounds_are_allowed(bound):
    assert vars(RegionMemoryCallback(**bound)).items() >= bound.items()
