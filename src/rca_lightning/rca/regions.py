"""Pseudo regions and their embeddings (RCA, section 3.2)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.aggregation import first_true
from rca_lightning.rca.cam import max_normalise, minmax_normalise

RegionRule = Literal["fixed", "mean", "quantile"]

_GRID = 2
BACKGROUND_TILES = _GRID**2
"""Most regions of the background in an image."""


@dataclass
class Regions:
    """Embeddings of the R regions of one batch.

    Attributes:
        embeddings: `(R, D)`, not normalised.
        labels: `(R,)` int64; class index, `num_classes` for the background.
        images: `(R,)` int64; index of the image in the batch.
    """

    embeddings: Tensor
    labels: Tensor
    images: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def select(self, keep: Tensor) -> Regions:
        """The regions where `keep` `(R,)` is true."""
        return Regions(self.embeddings[keep], self.labels[keep], self.images[keep])

    def none(self) -> Regions:
        """No region of this kind."""
        return Regions(self.embeddings[:0], self.labels[:0], self.images[:0])

    @staticmethod
    def cat(first: Regions, second: Regions) -> Regions:
        """Both, first then second."""
        return Regions(
            torch.cat([first.embeddings, second.embeddings]),
            torch.cat([first.labels, second.labels]),
            torch.cat([first.images, second.images]),
        )


@check_arguments
def extract_regions(
    embeddings: Tensor, cam: Tensor, tags: Tensor, *, threshold: float = 0.5, rule: RegionRule = "fixed"
) -> Regions:
    """Embeddings of the pseudo regions of every tagged class: equations (2) and (3) of docs/method.md (RCA, 3.2).

    Args:
        embeddings: `F`, `(B, D, H, W)`.
        cam: maps that the regions are cut from, `(B, L, H, W)`.
        tags: `(B, L)`, 0 or 1.
        threshold: see `pseudo_regions`.
        rule: see `pseudo_regions`.

    Returns:
        The regions that exist, with the graph of the embeddings.
    """
    return pool_regions(embeddings, pseudo_regions(cam, tags, threshold, rule))


@check_arguments
def pseudo_regions(maps: Tensor, tags: Tensor, threshold: float = 0.5, rule: RegionRule = "fixed") -> Tensor:
    """Cells of each tagged class whose activation stands out from the rest of its map: `M_l = P_l > cut`.

    Equation (2) of docs/method.md.

    Where the map is cut is the rule:

    - "fixed": `threshold` of the way from the lowest to the highest activation of the map. A single
      peak makes a small region, a broad plateau a large one.
    - "mean": the mean of the map over its cells, as in the authors' released code. `threshold` is not used:
      the mean is the threshold, and a number that moved it would turn it into another form of "fixed".
    - "quantile": the `threshold` quantile of the map, so that a region is the strongest `1 - threshold` of the
      cells, however high they are: 0.5 is the upper half.

    A cell that equals the cut is outside, so cells that share one value enter together or not at all.
    A constant map (range up to 1e-5), and the map of a class that is not tagged, has no region.

    Args:
        maps: activation maps `(B, L, H, W)`.
        tags: `(B, L)`, 0 or 1.
        threshold: of "fixed" and "quantile", in `[0, 1]`; at 1 there is no region.
        rule: where each map is cut.

    Returns:
        Boolean masks `(B, L, H, W)`.

    Raises:
        ArgumentError: for an unknown rule, or a quantile outside `[0, 1]`.

    Example:
        >>> maps, tags = torch.tensor([[[[0.0, 1.0, 2.0, 9.0]]]]), torch.ones(1, 1)
        >>> [int(pseudo_regions(maps, tags, 0.5, rule).sum()) for rule in ("fixed", "mean", "quantile")]
        [1, 1, 2]
    """
    tagged = _tagged(maps, tags)
    # Also for the rules that need no scale: here a map that is constant but for rounding becomes 0 everywhere.
    scaled = minmax_normalise(tagged.maps)
    above = (scaled > _cut(scaled, threshold, rule)) & tagged.present[:, :, None, None]
    return torch.zeros_like(maps, dtype=torch.bool).scatter_(1, tagged.labels[:, :, None, None].expand_as(above), above)


def _cut(scaled: Tensor, threshold: float, rule: RegionRule) -> Tensor | float:
    """The value, or one value a map `(B, L, 1, 1)`, that a cell must exceed."""
    if rule == "fixed":
        return threshold
    if rule == "mean":
        return scaled.mean(dim=(2, 3), keepdim=True)
    if not 0 <= threshold <= 1:
        raise ArgumentError("threshold", threshold, "give a quantile in [0, 1]")
    ranked = scaled.flatten(2).sort(dim=2).values  # (B, L, H, W) -> (B, L, HW)
    # The cell at or below the quantile: the same cells lie above it as above the interpolated value.
    rank = int(threshold * (ranked.shape[2] - 1))
    return ranked[:, :, rank, None, None]


def background_regions(maps: Tensor, tags: Tensor, threshold: float = 0.05, grid: int = _GRID) -> Tensor:
    """Masks of confidently empty cells, one region for each tile of a grid over the image.

    A cell is empty when no tagged class activates it above `threshold` of that class's peak. Tiles
    keep sky and floor of one photograph apart: their mean would resemble neither.
    An image without any tag gives no background, since nothing is known of it.

    Args:
        maps: activation maps `(B, L, H, W)`.
        tags: `(B, L)`, 0 or 1.
        threshold: in `[0, 1)`.
        grid: tiles along each side.

    Returns:
        Boolean masks `(B, grid * grid, H, W)`.
    """
    tagged = _tagged(maps, tags)
    normalised = max_normalise(tagged.maps)
    active = (normalised > threshold) & tagged.present[:, :, None, None]  # (B, M, H, W)
    # A map that is nowhere positive says nothing about where its object is.
    positive = (normalised > 0).flatten(2).any(dim=2)
    located = (positive | ~tagged.present).all(dim=1) & tagged.present.any(dim=1)
    empty = ~active.any(dim=1) & located[:, None, None]  # (B, H, W)
    height, width = maps.shape[2:]
    row = torch.arange(height, device=maps.device) * grid // height
    column = torch.arange(width, device=maps.device) * grid // width
    tile = row[:, None] * grid + column[None, :]  # (H, W)
    index = torch.arange(grid * grid, device=maps.device)
    return empty[:, None] & (tile[None] == index[:, None, None])[None]


def cell_labels(maps: Tensor, tags: Tensor, threshold: float = 0.05) -> Tensor:
    """Label of each cell: the tagged class with the highest map, or the background where none exceeds the threshold.

    Args:
        maps: activation maps `(B, L, H, W)`; each is divided by its peak.
        tags: `(B, L)`, 0 or 1.
        threshold: of the background, in `[0, 1]`.

    Returns:
        `(B, H, W)` uint8: 0 the background, `i` the i-th class that the image is tagged with.

    Example:
        >>> maps = torch.tensor([[[[4.0, 1.0, 0.0]], [[9.0, 9.0, 9.0]], [[0.0, 2.0, 0.1]]]])
        >>> cell_labels(maps, torch.tensor([[1, 0, 1]]), 0.2)
        tensor([[[1, 2, 0]]], dtype=torch.uint8)
    """
    tagged = _tagged(maps, tags)
    scores = max_normalise(tagged.maps).masked_fill(~tagged.present[:, :, None, None], -1)
    background = scores.new_full((len(scores), 1, *scores.shape[2:]), threshold)
    return torch.cat([background, scores], dim=1).argmax(dim=1).to(torch.uint8)


@dataclass
class _Tagged:
    """Maps of the tagged classes alone, which are a few, whatever the number of classes.

    Attributes:
        maps: `(B, M, H, W)` float32, `M` the most tags of an image.
        labels: `(B, M)`, their classes; each stands in a row once.
        present: `(B, M)` boolean, false where an image has fewer tags.
    """

    maps: Tensor
    labels: Tensor
    present: Tensor


def _tagged(maps: Tensor, tags: Tensor) -> _Tagged:
    labels = first_true(tags > 0)
    chosen = maps.gather(1, labels[:, :, None, None].expand(-1, -1, *maps.shape[2:]))
    return _Tagged(chosen.float(), labels, (tags > 0).gather(1, labels))


def pool_regions(features: Tensor, masks: Tensor, min_cells: int = 1) -> Regions:
    """Masked average pooling: `f_l = sum(M_l * F) / sum(M_l)`, equation (3) of docs/method.md.

    Args:
        features: `(B, D, H, W)`.
        masks: boolean `(B, L, H, W)`.
        min_cells: a region with fewer cells is no region; it is left out, never a zero vector.

    Returns:
        The regions that exist; labels are the second index of `masks`.
    """
    cells = masks.flatten(2).sum(dim=2)  # (B, L)
    exists = cells >= max(min_cells, 1)
    rows = first_true(exists)  # (B, M): an image has a few regions, whatever the number of classes
    taken = exists.gather(1, rows)
    own = masks.flatten(2).gather(1, rows[:, :, None].expand(-1, -1, masks.shape[2] * masks.shape[3]))  # (B, M, HW)
    # The sum over many cells overflows float16. A power of two divides without rounding, which 1 / cells would not.
    remaining, power = torch.frexp(cells.gather(1, rows).clamp_min(1).float())  # cells = remaining * 2**power
    weights = torch.ldexp(own.float(), -power[:, :, None]).to(features.dtype)
    # One batched product in place of a gather of (D, HW) for each region, in the order whose gradient is contiguous.
    means = (features.flatten(2) @ weights.transpose(1, 2)).transpose(1, 2)[taken]
    return Regions(means.float() / remaining[taken][:, None], rows[taken], torch.nonzero(exists)[:, 0])


@torch.no_grad()
def select_for_memory(
    regions: Regions,
    embeddings: Tensor,
    cam: Tensor,
    tags: Tensor,
    probabilities: Tensor,
    *,
    confidence: float = 0.5,
    background_threshold: float | None = 0.05,
) -> Regions:
    """Regions of confidently classified tags and of confidently empty cells, detached: what the memory takes in.

    Args:
        regions: of the tagged classes.
        embeddings: `(B, D, H, W)`.
        cam: maps that the regions were cut from, `(B, L, H, W)`.
        tags: `(B, L)`, 0 or 1.
        probabilities: `(B, L)`, image probability of each class.
        confidence: image probability a tag must reach; the region of a class that the network does not see in the
            image is some other part of it.
        background_threshold: see `background_regions`; `None`: no background.

    Returns:
        The regions; those of the background have label `L`.
    """
    kept = regions.select(probabilities[regions.images, regions.labels] >= confidence)
    if background_threshold is not None:
        background = pool_regions(embeddings, background_regions(cam, tags, background_threshold), min_cells=2)
        background.labels = torch.full_like(background.labels, tags.shape[1])
        kept = Regions.cat(kept, background)
    return Regions(kept.embeddings.detach(), kept.labels, kept.images)
