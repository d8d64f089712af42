"""Standardisation in one process; on several it is compared in `tests/distributed`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rca_lightning import RCAModule
from rca_lightning.backbones.base import Backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.standardization import Standardization


def test_is_a_batchnorm_without_scale_and_shift():
    torch.manual_seed(0)
    expected, found = nn.BatchNorm2d(5, affine=False), Standardization(5)
    for _ in range(3):
        features = 4 * torch.randn(2, 5, 3, 4) + 7
        first, second = features.clone().requires_grad_(), features.clone().requires_grad_()
        (expected(first) ** 3).sum().backward()
        (found(second) ** 3).sum().backward()
        torch.testing.assert_close(second.grad, first.grad)
    assert found.state_dict().keys() == expected.state_dict().keys()
    torch.testing.assert_close(dict(found.state_dict()), dict(expected.state_dict()))
    torch.testing.assert_close(found.eval()(features), expected.eval()(features))


def test_frozen_layers_stay_frozen_as_sync_batchnorm():
    """What `--trainer.sync_batchnorm true` makes of a module."""
    module = RCAModule(3, backbone="resnet14").train()
    names, images = set(module.state_dict()), torch.randn(2, 3, 64, 64)
    expected = module.network.backbone(images)[-1]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(module).train()
    layers = [layer for layer in converted.modules() if isinstance(layer, nn.SyncBatchNorm)]
    assert layers
    assert not any(layer.training or layer.weight.requires_grad for layer in layers)
    assert set(converted.state_dict()) == names
    assert isinstance(converted.network.backbone, Backbone)
    assert isinstance(converted.network.standardization, Standardization)
    torch.testing.assert_close(converted.network.backbone(images)[-1], expected)


def test_single_cell_is_one_sentence():
    """It has no variance: torch ends in a traceback of its batch normalisation."""
    layer = Standardization(2)
    with pytest.raises(ArgumentError, match=r"^features=\(1, 2, 1, 1\): a single cell has no variance"):
        layer(torch.ones(1, 2, 1, 1))
    assert int(layer.num_batches_tracked) == 0
    assert layer(torch.randn(2, 2, 1, 1)).isfinite().all()
    assert layer.eval()(torch.ones(1, 2, 1, 1)).isfinite().all()
