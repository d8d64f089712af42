"""Outlines of regions in a photograph, computed by the network as it is now."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.rca.network import RCANetwork, RegionMap
from rca_lightning.rca.regions import RegionRule, background_regions, pool_regions, pseudo_regions

Mask = npt.NDArray[np.bool_]  # (H, W)


class ImageRegions:
    """The pseudo regions of one photograph.

    The memory keeps the embedding of a region, not its mask. The mask is cut from the current maps of the network, so
    it may differ from the remembered region, which came from a random crop and earlier weights.

    Args:
        network: in evaluation mode.
        image: `(3, H, W)`, normalised; with `features` only its size is needed.
        tags: `(L,)`.
        long_side: pixels to which the longer side is scaled for the network; `None`: not scaled.
        region_threshold: see `pseudo_regions`.
        region_rule: see `pseudo_regions`.
        region_map: see `ActivationMaps.region_cam`.
        background_threshold: see `background_regions`.
        propagation_steps: see `propagate`.
        propagation_power: see `propagate`.
        features: of the photograph, `(1, D, h, w)`, behind a frozen backbone; `None`: computed from `image`.
    """

    @check_arguments
    @torch.no_grad()
    def __init__(
        self,
        network: RCANetwork,
        image: Tensor,
        tags: Tensor,
        *,
        long_side: int | None = None,
        region_threshold: float = 0.5,
        region_rule: RegionRule = "fixed",
        region_map: RegionMap = "coarse",
        background_threshold: float = 0.05,
        propagation_steps: int = 0,
        propagation_power: float = 2.0,
        features: Tensor | None = None,
    ) -> None:
        weight = next(network.parameters())
        self._size = (image.shape[1], image.shape[2])
        self._tags = tags[None].to(weight.device)
        self._region_threshold = region_threshold
        self._region_rule: RegionRule = region_rule
        self._background_threshold = background_threshold
        if features is None:
            maps = network(_scaled(image[None].to(weight), long_side), self._tags)
        else:
            maps = network.read([features.to(weight)], self._tags)
        self._embeddings: Tensor = maps.embeddings.float()  # (1, D, h, w)
        cam = maps.region_cam(region_map).float()  # (1, L, h, w)
        self._maps: Tensor = maps.propagate(cam, power=propagation_power, steps=propagation_steps)

    def of_class(self, label: int) -> Mask | None:
        """Mask `(H, W)` of the pseudo region of a class, tagged or not; `None` where its map is constant."""
        enlarged = _resized(self._maps[:, label : label + 1], self._size)
        mask = pseudo_regions(enlarged, enlarged.new_ones(1, 1), self._region_threshold, self._region_rule)[0, 0]
        return _as_mask(mask)

    def of_background(self, embedding: Tensor) -> Mask | None:
        """Mask `(H, W)` of the background tile nearest to a remembered embedding; `None` if there is no such tile.

        Args:
            embedding: `(D,)`.
        """
        tiles = background_regions(self._maps, self._tags, self._background_threshold)
        pooled = pool_regions(self._embeddings, tiles)
        if not len(pooled):
            return None
        cosines = F.normalize(pooled.embeddings, dim=1) @ embedding.to(pooled.embeddings)
        tile = int(pooled.labels[cosines.argmax()])
        tagged = self._tags[0] > 0
        enlarged = _resized(self._maps[:, tagged], self._size)
        smooth = background_regions(enlarged, self._tags[:, tagged], self._background_threshold)[0, tile]
        if not smooth.any():  # interpolated between cells, no pixel may be below the threshold: draw the whole cells
            smooth = F.interpolate(tiles[:, tile : tile + 1].float(), size=self._size, mode="nearest")[0, 0] > 0
        return _as_mask(smooth)


def _scaled(images: Tensor, long_side: int | None) -> Tensor:
    size = images.shape[2:]
    scale = 1.0 if long_side is None else long_side / max(size)
    target = [max(1, round(side * scale)) for side in size]
    if target == list(size):
        return images
    return F.interpolate(images, target, mode="bilinear", antialias=scale < 1)


def _resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def _as_mask(mask: Tensor) -> Mask | None:
    return np.asarray(mask.cpu().numpy(), dtype=np.bool_) if bool(mask.any()) else None
