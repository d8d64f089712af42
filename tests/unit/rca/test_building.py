"""Which parts the network gets for what it is to do."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from rca_lightning.backbones.base import Backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca import network as building
from rca_lightning.rca.network import RCANetwork, build_network

L = 3
C = 128  # channels of resnet14


def build(**options) -> RCANetwork:
    taken = inspect.signature(build_network).parameters
    defaults = {name: p.default for name, p in inspect.signature(RCAModule).parameters.items() if name in taken}
    by_mode = {
        "contrast": True,
        "beta": 1.0,
        "frozen": False,
        "projection": "learned",
        "padding_mode": "zeros",
        "channels_last": False,
        "stride_in": "3x3",
    }  # which the module chooses where they are left out
    return build_network(**{**defaults, **by_mode, "num_classes": L, "backbone": "resnet14", **options})


def parts(network: RCANetwork) -> set[str]:
    return {name for name, child in network.named_children() if child is not None}


PLAIN = {"backbone", "coarse_head"}
BOTH_HEADS = PLAIN | {"refined_head"}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, BOTH_HEADS | {"aggregation", "standardization"}),
        ({"beta": 0.0}, PLAIN | {"aggregation", "standardization"}),
        ({"standardize": False}, BOTH_HEADS | {"aggregation"}),
        ({"embedding_dim": 8}, BOTH_HEADS | {"aggregation", "standardization", "projection"}),
        ({"aggregation": False}, PLAIN | {"standardization"}),
        ({"aggregation": False, "contrast": False, "embedding_dim": 8}, PLAIN),
        ({"frozen": True, "projection": "pca", "contrast": False, "beta": 0.0}, PLAIN | {"aggregation", "pca"}),
        ({"frozen": True, "projection": "pca", "contrast": False, "beta": 0.0, "aggregation": False}, PLAIN | {"pca"}),
        ({"projection": "pca"}, BOTH_HEADS | {"aggregation", "pca"}),
        ({"projection": "pca", "contrast": False, "aggregation": False}, PLAIN | {"pca"}),
    ],
)
def test_network_has_the_parts_it_needs(options, expected):
    network = build(**options)
    assert parts(network) == expected
    maps = network.eval()(torch.zeros(1, 3, 32, 32))
    assert (maps.refined is None) == ("refined_head" not in expected)
    assert (maps.attention is None) == ("aggregation" not in expected)


def test_prototypes_are_as_wide_as_what_they_are_compared_with():
    wanted = {"num_prototypes": 4, "background_prototypes": 5, "embedding_stages": 1}
    assert build(**wanted).aggregation.prototypes.shape == (L * 4 + 5, C)
    assert build(embedding_dim=8).aggregation.prototypes.shape[1] == 8
    assert build(embedding_stages=2).aggregation.prototypes.shape[1] == C + C // 2


class WithoutStages(Backbone):
    """A network whose stages are not known, as those of timm."""

    output_stride = 16

    def __init__(self) -> None:
        super().__init__()
        self.stage_channels, self.stage_strides = [8], [16]
        self.conv = nn.Conv2d(3, 8, 16, stride=16)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        return [self.conv(images)]

    def stages(self) -> list[list[nn.Module]]:
        return []


def test_without_a_number_embeddings_are_made_of_two_stages_where_they_are_known(monkeypatch):
    network = build(embedding_stages=None)
    assert network.embedding_stages == 2
    assert network.aggregation.prototypes.shape[1] == C // 2 + C
    assert network.eval()(torch.zeros(1, 3, 32, 32)).embeddings.shape[1] == C // 2 + C
    monkeypatch.setattr(building, "build_backbone", lambda *_, **__: WithoutStages())
    network = build(embedding_stages=None)
    assert network.embedding_stages == 1
    assert network.aggregation.prototypes.shape[1] == 8
    assert network.eval()(torch.zeros(1, 3, 32, 32)).embeddings.shape[1] == 8
    with pytest.raises(ArgumentError, match="embedding_stages=2: WithoutStages offers 1 to 1"):
        build(embedding_stages=2)


def test_stages_nobody_embeds_are_not_computed():
    assert build(embedding_stages=2, aggregation=False).embedding_stages == 2
    assert build(embedding_stages=2, aggregation=False, contrast=False).embedding_stages == 1


@pytest.mark.parametrize("wrong", [{"attention_temperature": 0.0}, {"num_prototypes": 0}])
def test_arguments_of_parts_left_out_are_checked_too(wrong):
    with pytest.raises(ArgumentError):
        build(aggregation=False, contrast=False, **wrong)


def test_every_argument_is_one_of_the_module_and_has_no_default_of_its_own():
    own = inspect.signature(build_network).parameters
    assert set(own) - {"frozen"} <= set(inspect.signature(RCAModule).parameters)  # which is its backbone_mode
    assert all(parameter.default is inspect.Parameter.empty for parameter in own.values())
