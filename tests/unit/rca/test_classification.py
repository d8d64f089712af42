"""The classification loss against PyTorch's multi-label soft margin loss and its formula."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.rca.loss import classification_loss


def example(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = 4 * torch.randn(3, 5, 2, 4, generator=generator)
    return maps, torch.randint(0, 2, (3, 5), generator=generator)


@pytest.mark.parametrize("seed", range(3))
def test_equals_multilabel_soft_margin_loss_of_the_spatial_mean(seed):
    maps, tags = example(seed)
    expected = F.multilabel_soft_margin_loss(maps.mean(dim=(2, 3)), tags.float())
    torch.testing.assert_close(classification_loss(maps, tags), expected)


def test_by_loops():
    maps, tags = example(7)
    total = 0.0
    for image in range(3):
        for label in range(5):
            logit = sum(float(value) for value in maps[image, label].flatten()) / 8
            probability = 1 / (1 + math.exp(-logit))
            total -= math.log(probability if tags[image, label] else 1 - probability)
    assert float(classification_loss(maps, tags)) == pytest.approx(total / 15, rel=1e-5)


def test_extreme_maps_have_finite_loss_and_gradient():
    maps = torch.tensor([1e4, -1e4]).reshape(1, 2, 1, 1).requires_grad_()
    loss = classification_loss(maps, torch.tensor([[0, 1]]))
    loss.backward()
    assert float(loss) == pytest.approx(1e4)
    assert torch.isfinite(maps.grad).all()
