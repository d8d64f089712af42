"""What is said of tensors that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rca_lightning.modules.training_guards import RunningStatistics, broken_weight, find_non_finite


def batch(count: int) -> dict:
    return {
        "image": torch.zeros(count, 3, 2, 2),
        "tags": torch.ones(count, 1),
        "image_id": [f"i{n}" for n in range(count)],
    }


def test_finite_is_nothing():
    assert find_non_finite(batch(2), {"features": torch.ones(2, 4)}) is None


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_first_in_the_order_of_computation_with_its_images(value):
    features, loss = torch.ones(3, 2, 2), torch.tensor(value)
    features[0, 1, 1] = features[2, 0, 0] = value
    found = find_non_finite(batch(3), {"embeddings": torch.ones(3, 1), "features": features, "loss": loss})
    assert (found.first, found.others, found.culprits) == ("features", ("loss",), ("i0", "i2"))
    assert str(found) == "features of 'i0', 'i2' not finite, then loss, in the batch of 'i0', 'i1', 'i2'"
    assert "lr" in found.remedy


def test_data_comes_first_and_has_a_remedy_of_its_own():
    given = batch(2)
    given["tags"][1] = torch.nan
    found = find_non_finite(given, {"loss": torch.tensor(torch.nan)})
    assert (found.first, found.culprits) == ("tags", ("i1",))
    assert "photograph" in found.remedy


def test_rows_that_are_no_images_and_long_batches():
    found = find_non_finite(batch(70), {"regions": torch.full((5, 2), torch.nan)})
    assert found.culprits == ()
    assert str(found).startswith("regions not finite, in the batch of 'i0', ")
    assert str(found).endswith("'i63' and 6 more")


def test_broken_weight_by_name_but_not_statistics_that_are_being_learned():
    network = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    assert broken_weight(network) is None
    network[1].running_mean.fill_(torch.nan)
    assert broken_weight(network) is None
    assert broken_weight(network.eval()) == "1.running_mean"
    with torch.no_grad():
        network[0].bias[1] = -torch.inf
    assert broken_weight(network) == "0.bias"
    assert broken_weight(network[0]) == "bias"


def test_statistics_come_back_only_where_they_would_change():
    network = nn.Sequential(nn.BatchNorm1d(2), nn.BatchNorm1d(2).eval(), nn.BatchNorm1d(2, track_running_stats=False))
    kept = RunningStatistics(network)
    network(torch.full((4, 2), torch.nan))
    assert network[0].running_mean.isnan().all()
    with torch.no_grad():
        network[1].running_mean.fill_(3.0)
    kept.restore()
    assert network[0].running_mean.tolist() == [0, 0]
    assert network[0].running_var.tolist() == [1, 1]
    assert network[0].num_batches_tracked == 0
    assert network[1].running_mean.tolist() == [3, 3]
