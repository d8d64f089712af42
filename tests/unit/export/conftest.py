"""Networks that stand in for trained segmenters: one coarse, one with a decoder."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

LABELS = 3


def halving(*widths: int) -> nn.Sequential:
    """Layers of stride 2, with the parts of a backbone: convolutions without bias, batch normalisations, ReLUs."""
    layers = []
    for before, width in pairwise(widths):
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


class Coarse(nn.Module):
    """Logits at an output stride of 8, as DeepLab v2 gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = halving(3, 8, 8, 16)
        self.classifier = nn.Conv2d(16, LABELS, 1)

    def forward(self, images):
        return self.classifier(self.backbone(images))


class WithDecoder(nn.Module):
    """Image pooling, and logits at the size of an early stage, as DeepLab v3+ gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.early, self.late = halving(3, 8, 8), halving(8, 16, 8)
        self.decoder = nn.Conv2d(16, LABELS, 3, padding=1)

    def forward(self, images):
        early = self.early(images)
        features = self.late(early)
        features = features + features.mean((2, 3), keepdim=True)
        enlarged = F.interpolate(features, size=early.shape[2:], mode="bilinear", align_corners=False)
        return self.decoder(torch.cat([enlarged, early], dim=1))


def as_if_trained(network: nn.Module) -> nn.Module:
    """Batch normalisations with statistics of their own: untouched ones would hide that they are missing."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.5, 2)
    return network.eval()


@pytest.fixture(scope="session")
def networks() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"coarse": as_if_trained(Coarse()), "decoder": as_if_trained(WithDecoder())}
