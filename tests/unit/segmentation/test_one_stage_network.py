"""One pass of the backbone gives what the RCA network and the head give alone."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.backbones.build import build_backbone
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.network import RCANetwork
from rca_lightning.segmentation.network import build_head
from rca_lightning.segmentation.one_stage import OneStageNetwork


def build(head: str, projection: str = "learned") -> OneStageNetwork:
    torch.manual_seed(0)
    backbone = build_backbone("resnet14", output_stride=8, weights="none")
    aggregation = SemanticAggregation(16, 2, 3, temperature=0.1)
    aggregation.write(torch.nn.functional.normalize(torch.randn(6, 16), dim=1), torch.ones(6, dtype=torch.bool))
    network = RCANetwork(
        backbone, 2, embedding_dim=16, embedding_stages=2, projection=projection, aggregation=aggregation
    )
    return OneStageNetwork(network, *build_head(head, backbone, 3)).eval()


@pytest.mark.parametrize("projection", ["learned", "pca"])
@pytest.mark.parametrize("head", ["linear", "deeplabv2", "deeplabv3plus"])
@torch.no_grad()
def test_branches_are_those_of_both_parts(head: str, projection: str):
    network = build(head, projection)
    passes = []
    network.network.backbone.register_forward_hook(lambda *_: passes.append(1))
    images, tags = torch.randn(2, 3, 48, 64), torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    maps, logits = network.branches(images, tags)
    assert len(passes) == 1
    alone = network.network(images, tags)
    for name in ("embeddings", "coarse", "refined", "attention"):
        torch.testing.assert_close(getattr(maps, name), getattr(alone, name), rtol=0, atol=0)
    torch.testing.assert_close(logits, network.head(network.network.backbone(images)), rtol=0, atol=0)
    passes.clear()
    weighed = network(images).softmax(1).double()
    assert len(passes) == 1
    # Probabilities of classes times those of their tags, by hand.
    share = logits.double().softmax(1)
    tag = maps.coarse.double().mean((2, 3)).sigmoid()[:, :, None, None]
    share = torch.cat([share[:, :1], share[:, 1:] * tag], dim=1)
    torch.testing.assert_close(weighed, share / share.sum(1, keepdim=True), rtol=1e-4, atol=1e-6)
