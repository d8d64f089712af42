"""The plainest segmentation head: one linear classifier."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from rca_lightning.models.standardization import Standardization


class LinearHead(nn.Module):
    """One linear classifier for every cell, as the scores of an FCN (Long et al., CVPR 2015), on standardised features.

    What a cell is follows from its own features alone: fewer weights to learn than the heads that also see the
    surroundings, for small sets and labels that are often wrong.

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
        """Logits of the last stage."""
        logits: Tensor = self.classifier(self.standardization(stages[-1]))
        return logits
