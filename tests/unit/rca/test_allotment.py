"""Number of prototypes by the number of regions."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.clustering.cluster import cluster
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.prototypes import prototypes_per_class


@pytest.mark.parametrize("most", [1, 4, 10])
@pytest.mark.parametrize("each", [1, 7, 20])
def test_one_for_every_so_many_regions(most, each):
    counts = torch.tensor([0, 1, 6, 7, 8, 19, 20, 39, 40, 139, 500])
    expected = [0 if not count else max(1, min(most, count // each)) for count in counts.tolist()]
    assert prototypes_per_class(counts, most, each).tolist() == expected


def test_result_is_what_cluster_takes():
    counts = torch.tensor([0, 3, 25])
    valid = torch.arange(25)[None] < counts[:, None]
    points = torch.randn(3, 25, 4, generator=torch.Generator().manual_seed(0))
    wanted = prototypes_per_class(counts, 4, 10)
    assert cluster(points, 4, valid=valid, clusters_per_class=wanted).valid.sum(dim=1).tolist() == [0, 1, 2]


@pytest.mark.parametrize(("most", "each", "name"), [(0, 5, "num_prototypes"), (5, 0, "regions_per_prototype")])
def test_numbers_below_one_are_refused(most, each, name):
    with pytest.raises(ArgumentError, match=f"{name}=0"):
        prototypes_per_class(torch.tensor([3]), most, each)


def test_a_single_region_has_a_prototype():
    assert prototypes_per_class(torch.tensor([0, 1, 2]), 10, 20).tolist() == [0, 1, 1]
