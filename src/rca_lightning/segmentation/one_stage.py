"""Network of one stage: CAM, RCA and the segmentation head on one pass of the backbone."""

from __future__ import annotations

from torch import Tensor, nn

from rca_lightning.rca.cam import image_logits
from rca_lightning.rca.network import ActivationMaps, RCANetwork
from rca_lightning.segmentation.network import weigh_by_tags


class OneStageNetwork(nn.Module):
    """An RCA network and a segmentation head that reads the same backbone.

    Args:
        network: gives the maps, and the outputs of its backbone to the head.
        head: see `build_head`.
        head_stages: how many of the last stages of the backbone the head reads.
    """

    def __init__(self, network: RCANetwork, head: nn.Module, head_stages: int) -> None:
        super().__init__()
        self.network = network
        self.head = head
        self.head_stages = head_stages
        self._read = max(head_stages, network.embedding_stages)

    def forward(self, images: Tensor) -> Tensor:
        """Computes the logits of the pixels, each class weighed by the probability of its tag.

        Args:
            images: `(B, 3, H, W)`, normalised as the backbone expects.

        Returns:
            `(B, L + 1, h, w)`, label 0 the background; see `weigh_by_tags`.
        """
        outputs = self.network.outputs(images, self._read)
        coarse = self.network.coarse_head(self.network.stages_of(outputs)[-1])
        return weigh_by_tags(self._logits(outputs), image_logits(coarse))

    def branches(self, images: Tensor, tags: Tensor | None = None) -> tuple[ActivationMaps, Tensor]:
        """Computes what the losses need.

        Args:
            images: `(B, 3, H, W)`.
            tags: as for `RCANetwork.read`.

        Returns:
            The maps, and the logits `(B, L + 1, h, w)` of the pixels.
        """
        outputs = self.network.outputs(images, self._read)
        return self.network.read(self.network.stages_of(outputs), tags), self._logits(outputs)

    def _logits(self, outputs: list[Tensor]) -> Tensor:
        logits: Tensor = self.head(outputs[-self.head_stages :])
        return logits
