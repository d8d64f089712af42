"""Parameter groups and the poly decay."""

from __future__ import annotations

import pytest
import torch
from tests.quiet_trainer import quiet_trainer
from tests.tagged_images import tagged_images
from torch import nn
from torch.utils.data import DataLoader

from rca_lightning.data.sample import collate
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.optimizers import build_optimizer, poly_decay
from rca_lightning.modules.rca_module import RCAModule


def build(**changes) -> torch.optim.Optimizer:
    options = {"name": "sgd", "lr": 0.1, "new_layer_lr_ratio": 10.0, "weight_decay": 1e-3, "momentum": 0.8}
    options.update(changes)
    backbone, head = options.pop("backbone", nn.Linear(2, 2)), options.pop("head", nn.Linear(2, 1))
    return build_optimizer(backbone.parameters(), head.parameters(), **options)


def test_new_layers_get_a_multiple_of_the_rate():
    backbone, head = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = build(backbone=backbone, head=head, new_layer_lr_ratio=7.0)
    old, new = optimizer.param_groups
    assert {id(p) for p in old["params"]} == {id(p) for p in backbone.parameters()}
    assert {id(p) for p in new["params"]} == {id(p) for p in head.parameters()}
    assert (old["lr"], new["lr"]) == pytest.approx((0.1, 0.7))


def test_frozen_parameters_are_left_out_and_do_not_decay():
    backbone = nn.Linear(2, 2)
    backbone.weight.requires_grad_(False)
    before = backbone.weight.clone()
    optimizer = build(backbone=backbone, weight_decay=0.5)
    assert [id(p) for p in optimizer.param_groups[0]["params"]] == [id(backbone.bias)]
    backbone.bias.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(backbone.weight, before)


def test_wholly_frozen_backbone_leaves_one_group():
    optimizer = build(backbone=nn.Linear(2, 2).requires_grad_(False))
    assert [group["lr"] for group in optimizer.param_groups] == [1.0]


def test_names_give_their_optimizer_with_its_settings():
    sgd = build()
    assert type(sgd) is torch.optim.SGD
    assert {(g["momentum"], g["weight_decay"]) for g in sgd.param_groups} == {(0.8, 1e-3)}
    adamw = build(name="adamw")
    assert type(adamw) is torch.optim.AdamW
    assert {g["weight_decay"] for g in adamw.param_groups} == {1e-3}
    assert [g["lr"] for g in adamw.param_groups] == pytest.approx([0.1, 1.0])


@pytest.mark.parametrize("lr", [0.0, -1.0])
def test_rate_must_be_positive(lr):
    with pytest.raises(ArgumentError, match="lr="):
        build(lr=lr)


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_poly_decay_step_by_step(power):
    optimizer = build()
    schedule = poly_decay(optimizer, 5, power)
    for step in range(5):
        factor = (1 - step / 5) ** power
        assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.1 * factor, 1.0 * factor])
        optimizer.step()
        schedule.step()
    for _ in range(3):  # beyond the end: zero, never a complex number
        assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.0]
        schedule.step()


def test_poly_decay_needs_a_step():
    with pytest.raises(ArgumentError, match="total_steps=0"):
        poly_decay(build(), 0, 0.9)


@pytest.mark.parametrize("limits", [{"max_epochs": -1}, {"max_time": {"hours": 1}}])
def test_training_without_a_known_end_is_refused(tmp_path, limits):
    module = RCAModule(2, backbone="resnet14", contrast=False, aggregation=False)
    images = tagged_images("a", height=32, width=32)
    with pytest.raises(ArgumentError, match=r"^trainer.max_epochs=.*: give it or max_steps"):
        quiet_trainer(tmp_path, **limits).fit(module, DataLoader(images, collate_fn=collate))
