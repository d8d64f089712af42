"""Drawing points in proportion to weights."""

from __future__ import annotations

import torch

from rca_lightning.clustering.kmeans import PerClassGenerator, _draw


class Fixed(PerClassGenerator):
    def __init__(self, numbers: torch.Tensor) -> None:
        self.numbers = numbers

    def uniform(self, count: int) -> torch.Tensor:
        return self.numbers


def test_index_is_where_the_share_of_the_weights_is_passed():
    weights = torch.tensor([[1.0, 0.0, 3.0], [0.0, 2.0, 2.0]])
    shares = torch.tensor([[0.0, 0.2, 0.25, 0.9], [0.0, 0.49, 0.5, 0.99]], dtype=torch.float64)
    assert _draw(weights, 4, Fixed(shares)).tolist() == [[0, 0, 2, 2], [1, 1, 2, 2]]


def test_share_that_is_rounded_up_to_one_draws_the_last():
    assert _draw(torch.ones(1, 3), 1, Fixed(torch.ones(1, 1, dtype=torch.float64))).tolist() == [[2]]


def test_first_where_no_point_has_weight():
    assert _draw(torch.zeros(1, 3), 2, Fixed(torch.tensor([[0.1, 0.9]], dtype=torch.float64))).tolist() == [[0, 0]]
