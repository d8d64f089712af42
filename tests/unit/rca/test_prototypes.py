"""Prototypes from a memory: which steps run, and what comes out where the answer is known."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.clustering.cluster import kmeans
from rca_lightning.clustering.clusters import Clusters
from rca_lightning.clustering.concentration import concentration
from rca_lightning.errors import ArgumentError
from rca_lightning.rca import prototypes
from rca_lightning.rca.prototypes import PrototypeMaker


def maker(**options) -> PrototypeMaker:
    """With the defaults of the callback, which are the only ones."""
    return RegionMemoryCallback(**{"backend": "torch", **options}).maker


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
    found = maker()(points, valid, 6, seed=3)
    expected = kmeans(points, 6, valid=valid, seed=3, backend="torch")
    torch.testing.assert_close(found.vectors, F.normalize(expected.centroids, dim=2))
    assert torch.equal(found.valid, expected.valid)
    assert (found.factors == 1).all()
    assert found.valid.sum(dim=1).tolist() == [6, 6, 3, 0]
    torch.testing.assert_close(found.vectors.norm(dim=2), found.valid.float())


def test_plain_prototypes_are_k_means_whatever_else_is_asked_for():
    points, valid = bank()
    everything = maker(clustering="farthest", iterations=7, restarts=2, regions_per_prototype=8, reseed=True,
                       merge_above=0.9, drop_below=0.5, concentration=True)  # fmt: skip
    found = everything.plain(points, valid, 6, seed=3)
    expected = kmeans(points, 6, valid=valid, seed=3, iterations=7, backend="torch")
    torch.testing.assert_close(found.vectors, F.normalize(expected.centroids, dim=2))
    assert torch.equal(found.valid, expected.valid)
    assert (found.factors == 1).all()
    assert found.num_requested.tolist() == [6, 6, 6, 6]


def test_no_argument_has_a_second_default():
    with pytest.raises(TypeError, match=r"clustering.*concentration"):
        PrototypeMaker(backend="torch")


@pytest.mark.parametrize("clustering", ["kmeans", "spherical", "sinkhorn", "gmm", "farthest"])
def test_every_method_finds_six_modes(clustering):
    points, valid = bank()
    found = maker(clustering=clustering, restarts=5)(points[:1], valid[:1], 6)
    nearest = (found.vectors[0] @ torch.eye(16)[:6].T).amax(dim=0)
    assert (nearest > 0.98).all()


def test_merging_leaves_only_what_differs():
    points, valid = bank()
    found = maker(merge_above=0.9)(points, valid, 6)
    assert found.valid.sum(dim=1).tolist() == [6, 2, 3, 0]
    assert found.num_requested.tolist() == [6, 2, 3, 0]


@pytest.mark.parametrize("reseed", [True, False])
def test_prototypes_without_a_point_are_placed_anew_only_if_asked_for(reseed, monkeypatch):
    points, valid = bank()

    def dead(points: torch.Tensor, number: int, **_: object) -> Clusters:
        found = kmeans(points, number, valid=valid, backend="torch")
        mean = points.sum(dim=1, keepdim=True).expand(-1, number, -1)  # one cluster of all points
        usable = torch.arange(number)[None] < valid.any(dim=1)[:, None].long()
        return replace(found, centroids=mean * usable[:, :, None], valid=usable, assignment=valid.long() - 1)

    monkeypatch.setattr(prototypes, "cluster", dead)
    found = maker(reseed=reseed)(points, valid, 6)
    assert found.valid.sum(dim=1).tolist() == ([6, 6, 3, 0] if reseed else [1, 1, 1, 0])


def test_one_slot_a_class_is_enough():
    points, valid = bank()
    found = maker()(points[:, :1], valid[:, :1], 6)
    assert found.valid.sum(dim=1).tolist() == [1, 1, 1, 0]
    assert found.num_requested.tolist() == [6, 6, 6, 6]


def test_classes_of_few_regions_get_fewer():
    points, valid = bank()
    found = maker(regions_per_prototype=8)(points, valid, 6)
    assert found.valid.sum(dim=1).tolist() == found.num_requested.tolist() == [6, 2, 1, 0]


def test_low_scores_are_dropped_but_never_all():
    points, valid = bank()

    def score(vectors: torch.Tensor) -> torch.Tensor:
        lengths = vectors.norm(dim=2)
        torch.testing.assert_close(lengths, (lengths > 0).float())
        return (vectors[:, :, 0] > 0.5).float()  # only the first axis is believed

    found = maker(drop_below=0.5)(points, valid, 6, score=score)
    assert found.valid.sum(dim=1)[0] == 1
    assert found.vectors[0, 0, 0] > 0.98
    assert found.valid.any(dim=1).tolist() == [True, True, True, False]


def test_warm_start_keeps_places():
    points, valid = bank()
    last = torch.zeros(4, 6, 16)
    last[0, range(6), range(5, -1, -1)] = 1.0
    usable = torch.zeros(4, 6, dtype=torch.bool)
    usable[0] = True
    found = maker(warm_start=True)(points, valid, 6, last=(last, usable))
    assert found.vectors[0].argmax(dim=1).tolist() == [5, 4, 3, 2, 1, 0]


def test_concentration_gives_the_factors():
    points, valid = bank()
    found = maker(concentration=True)(points, valid, 2)
    torch.testing.assert_close(found.factors, concentration(points, found.clusters))
    assert found.factors[found.valid].unique().numel() > 1


@pytest.mark.parametrize(
    "wrong",
    [{"iterations": 0}, {"restarts": 0}, {"regions_per_prototype": 0}, {"merge_above": 1.0}, {"drop_below": 1.1}],
)
def test_wrong_arguments_are_named(wrong):
    with pytest.raises(ArgumentError, match=next(iter(wrong))):
        maker(**wrong)


@pytest.mark.parametrize("bound", [{"merge_above": -0.9}, {"merge_above": 0.99}, {"drop_below": 0}, {"drop_below": 1}])
def test_bounds_reach_as_far_as_cosines_and_probabilities(bound):
    assert vars(maker(**bound)).items() >= bound.items()
