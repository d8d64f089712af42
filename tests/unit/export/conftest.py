"""Networks that stand in for trained segmenters: one coarse, one with a decoder."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rca_lightning.backbones.build import build_backbone

LABELS = 3


class Coarse(nn.Module):
    """Logits at the output stride of the backbone, as DeepLab v2 gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_backbone("resnet14", output_stride=8)
        self.classifier = nn.Conv2d(self.backbone.num_features, LABELS, 1)

    def forward(self, images):
        return self.classifier(self.backbone(images)[-1])


class WithDecoder(nn.Module):
    """Image pooling, and logits at the size of an early stage, as DeepLab v3+ gives them."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = build_backbone("resnet14", output_stride=16)
        early, *_, late = self.backbone.stage_channels
        self.late = nn.Conv2d(late, 8, 1)
        self.decoder = nn.Conv2d(early + 8, LABELS, 3, padding=1)

    def forward(self, images):
        early, *_, late = self.backbone(images)
        features = self.late(late)
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
