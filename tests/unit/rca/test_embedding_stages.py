"""Embeddings made of several stages of a backbone."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from rca_lightning.backbones.build import build_backbone
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.network import RCANetwork

L, K = 3, 2


def images(size: tuple[int, int] = (64, 80)) -> torch.Tensor:
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))


def outputs_of_layers(backbone: torch.nn.Module, pictures: torch.Tensor) -> dict[str, torch.Tensor]:
    x = backbone.maxpool(backbone.relu(backbone.bn1(backbone.conv1(pictures))))
    found = {}
    for name in ("layer1", "layer2", "layer3", "layer4"):
        x = found[name] = getattr(backbone, name)(x)
    return found


def test_last_stages_are_the_outputs_of_the_layers():
    backbone = build_backbone("resnet18", output_stride=16).eval()
    expected = outputs_of_layers(backbone, images())
    found = backbone(images())[-3:]
    assert [tuple(stage.shape) for stage in found] == [(2, 128, 8, 10), (2, 256, 4, 5), (2, 512, 4, 5)]
    for stage, name in zip(found, ("layer2", "layer3", "layer4"), strict=True):
        torch.testing.assert_close(stage, expected[name])
    assert not any(module._forward_hooks for module in backbone.modules())


@pytest.mark.parametrize(
    ("name", "count", "channels"),
    [
        ("resnet18", 1, [512]),
        ("resnet18", 2, [256, 512]),
        ("resnet50", 3, [512, 1024, 2048]),
        ("resnet14", 2, [64, 128]),  # its last stage is none
        ("vgg16", 2, [512, 512]),
    ],
)
def test_stage_channels(name, count, channels):
    backbone = build_backbone(name, output_stride=8)
    assert backbone.stage_channels[-count:] == channels


@pytest.mark.parametrize("count", [0, 6])
def test_stages_that_do_not_exist_are_refused(count):
    with pytest.raises(ArgumentError, match="embedding_stages"):
        RCANetwork(build_backbone("resnet18", output_stride=16), L, embedding_stages=count)


@pytest.mark.parametrize("count", [2, 3])
def test_every_stage_has_the_same_weight(count):
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", output_stride=16, frozen_batchnorm=False)
    network = RCANetwork(backbone, L, embedding_stages=count)
    network.train()
    with torch.no_grad():
        embeddings = network(images()).embeddings
    sizes = backbone.stage_channels[-count:]
    energies = [float(part.square().sum(dim=1).mean()) for part in embeddings.split(sizes, dim=1)]
    assert embeddings.shape == (2, sum(sizes), 4, 5)
    for energy in energies:
        assert energy == pytest.approx(sizes[-1], rel=0.02)


def test_projection_reads_all_stages():
    network = RCANetwork(build_backbone("resnet18", output_stride=16), L, embedding_dim=8, embedding_stages=2)
    assert network.projection.weight.shape == (8, 768, 1, 1)
    assert network(images()).embeddings.shape == (2, 8, 4, 5)


@pytest.mark.parametrize("count", [1, 2])
def test_prototype_scores_are_what_the_head_gives_such_a_pixel(count):
    torch.manual_seed(0)
    backbone = build_backbone("resnet18", output_stride=16)
    dim = sum(backbone.stage_channels[-count:])
    network = RCANetwork(
        backbone,
        L,
        embedding_stages=count,
        aggregation=SemanticAggregation(dim, L, K, temperature=0.1, background_prototypes=2),
    )
    torch.nn.init.normal_(network.coarse_head.conv.weight)
    network.standardization.running_mean.normal_()
    network.standardization.running_var.uniform_(0.5, 2)
    prototypes = F.normalize(torch.randn(L, K, dim), dim=2)
    found = network.prototype_scores(prototypes)
    deviation, mean = network.standardization.running_var.sqrt(), network.standardization.running_mean
    for label in range(L):
        for k in range(K):
            pixel = (prototypes[label, k] * (count * 512) ** 0.5 * deviation + mean)[-512:]
            if count > 1:  # weights of the last stage are 1
                assert network.stage_weights[-1].item() == 1
            logits = network.coarse_head.conv.weight[:, :, 0, 0].double() @ pixel.double()
            assert found[label, k].item() == pytest.approx(logits.softmax(0)[label].item(), abs=1e-4)


def test_projected_prototypes_have_no_score():
    network = RCANetwork(build_backbone("resnet18", output_stride=16), L, embedding_dim=8)
    with pytest.raises(ArgumentError, match="embedding_dim"):
        network.prototype_scores(torch.randn(L, K, 8))
