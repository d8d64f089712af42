"""Segmentation heads: a linear classifier, DeepLab v2 and v3+, on the stages of a backbone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.rca.standardization import Standardization


class LinearHead(nn.Module):
    """1x1 convolution on standardised features, as the scores of an FCN (Long et al., CVPR 2015).

    Fewer weights to learn than the heads with a larger receptive field: for small sets and noisy labels.

    Args:
        in_channels: of the features.
        num_labels: `L + 1`, the background among them.

    Shapes:
        features `(B, C, h, w)`, the last of the stages -> logits `(B, L + 1, h, w)`.
    """

    def __init__(self, in_channels: int, num_labels: int) -> None:
        super().__init__()
        # After a ReLU features have a large mean. A step along it moves every logit, so only tiny rates are stable.
        self.standardization = Standardization(in_channels)
        self.classifier = nn.Conv2d(in_channels, num_labels, 1)
        nn.init.normal_(self.classifier.weight, std=0.01)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Computes logits from the last stage."""
        logits: Tensor = self.classifier(self.standardization(stages[-1]))
        return logits


_WIDTH = 256  # channels inside v3+
_LOW_LEVEL_WIDTH = 48
_GROUPS = 16


class DeepLabV2Head(nn.Module):
    """Parallel dilated 3x3 classifiers whose outputs are summed (ASPP-L; Chen et al. 2018, arXiv 1606.00915).

    Args:
        in_channels: of the features.
        num_labels: `L + 1`, the background among them.
        rates: dilation of each classifier in cells. The paper's 6, 12, 18, 24 are for an output stride of 8.

    Shapes:
        features `(B, C, h, w)`, the last of the stages -> logits `(B, L + 1, h, w)`.
    """

    def __init__(self, in_channels: int, num_labels: int, *, rates: Sequence[int] = (6, 12, 18, 24)) -> None:
        super().__init__()
        self.classifiers = nn.ModuleList(
            nn.Conv2d(in_channels, num_labels, 3, padding=rate, dilation=rate) for rate in rates
        )
        for classifier in self.classifiers:
            _init_classifier(classifier)

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Computes logits from the last stage."""
        logits = [classifier(stages[-1]) for classifier in self.classifiers]
        return torch.stack(logits).sum(0)


class DeepLabV3PlusHead(nn.Module):
    """ASPP, and a decoder that concatenates it with an early stage (Chen et al., ECCV 2018, arXiv 1802.02611).

    Group normalisation instead of the paper's batch normalisation: image pooling trains with a single image too.

    Args:
        in_channels: of the features.
        low_channels: of the early stage.
        num_labels: `L + 1`, the background among them.
        rates: dilation of the 3x3 branches in cells. The paper's 6, 12, 18 are for an output stride of 16.
        dropout: probability that a channel is dropped before the decoder.

    Shapes:
        stages: first the early one `(B, C', h', w')`, last the features `(B, C, h, w)` -> `(B, L + 1, h', w')`.
    """

    def __init__(
        self,
        in_channels: int,
        low_channels: int,
        num_labels: int,
        *,
        rates: Sequence[int] = (6, 12, 18),
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        branches = [_layer(in_channels, _WIDTH, 1)] + [_layer(in_channels, _WIDTH, 3, rate) for rate in rates]
        self.branches = nn.ModuleList(branches)
        self.pooled = _layer(in_channels, _WIDTH, 1)
        self.joined = nn.Sequential(_layer((len(branches) + 1) * _WIDTH, _WIDTH, 1), nn.Dropout2d(dropout))
        self.low = _layer(low_channels, _LOW_LEVEL_WIDTH, 1)
        decoder = _layer(_WIDTH + _LOW_LEVEL_WIDTH, _WIDTH, 3), _layer(_WIDTH, _WIDTH, 3)
        self.decoder = nn.Sequential(*decoder, nn.Conv2d(_WIDTH, num_labels, 1))
        _init_classifier(self.decoder[-1])

    def forward(self, stages: Sequence[Tensor]) -> Tensor:
        """Computes logits at the size of the early stage."""
        low, features = stages[0], stages[-1]
        image = self.pooled(features.mean(dim=(2, 3), keepdim=True))
        context = [branch(features) for branch in self.branches]
        context.append(image.expand(-1, -1, features.shape[2], features.shape[3]))
        aspp = self.joined(torch.cat(context, dim=1))
        enlarged = F.interpolate(aspp, size=low.shape[2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.decoder(torch.cat([enlarged, self.low(low)], dim=1))
        return logits


def _layer(width_in: int, width: int, size: int, dilation: int = 1) -> nn.Sequential:
    convolution = nn.Conv2d(width_in, width, size, padding=dilation * (size // 2), dilation=dilation, bias=False)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(convolution, nn.GroupNorm(_GROUPS, width), nn.ReLU(inplace=True))


def _init_classifier(convolution: nn.Module) -> None:
    """Initialises small weights: labels are about equally likely, and training starts at a loss of log(L + 1)."""
    assert isinstance(convolution, nn.Conv2d)
    nn.init.normal_(convolution.weight, std=0.01)
    if convolution.bias is not None:
        nn.init.zeros_(convolution.bias)
