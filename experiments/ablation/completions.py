"""Rival contexts behind a frozen backbone, with nothing to train: cells complete the CAM by attention to other cells.

Prototypes of the dataset are read as `S = softmax(cos(F, Q) / t)`, `F' = S Q`, and `S` summed by class is the map. A
rival here reads the same embeddings with the same softmax, tags, regions and background; all that differs is where the
vectors come from:

| completion | what a cell reads |
| --- | --- |
| `ObjectCompletion` | the regions of its own photograph, one of each tag and up to four of the background |
| `DoubleCompletion` | clusters of the cells of its own photograph, each with the mean CAM of its cells |
| `CoCompletion` | cells of the regions of other photographs with its tags |

They are `ObjectContext`, `DoubleAttention` and `CoAttention` of contexts.py without their learned projections.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rca_lightning.clustering.cluster import cluster
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.aggregation import Aggregated
from rca_lightning.rca.cam import max_normalise
from rca_lightning.rca.propagation import propagate
from rca_lightning.rca.prototype_contrast import CELLS
from rca_lightning.rca.regions import Regions, extract_regions, select_for_memory


class Completion(nn.Module, ABC):
    """Gives every cell a context and a share of each class, from embeddings, CAM and tags alone.

    Args:
        channels: `D` of embeddings and context.
        num_classes: foreground classes `L`.
        temperature: of the softmax over unit vectors.
    """

    def __init__(self, channels: int, num_classes: int, *, temperature: float) -> None:
        super().__init__()
        if temperature <= 0:
            raise ArgumentError("attention_temperature", temperature, "give a number above 0")
        self.context_channels = channels
        self.num_classes = num_classes
        self.temperature = temperature

    @torch.no_grad()
    def forward(self, embeddings: Tensor, cam: Tensor, tags: Tensor) -> Aggregated:
        """Completes the CAM.

        Args:
            embeddings: `(B, D, H, W)`.
            cam: maps of the first head, `(B, L, H, W)`.
            tags: `(B, L)`, above 0 for the classes that may be read.

        Returns:
            `F'` of unit vectors, and the share of each class, the background last; both 0 where nothing can be read.
        """
        rows = [slice(image, image + 1) for image in range(len(embeddings))]
        parts = [self.complete(embeddings[row], cam[row], tags[row]) for row in rows]
        return Aggregated(
            torch.cat([part.context for part in parts]), torch.cat([part.class_attention for part in parts])
        )

    @abstractmethod
    def complete(self, embeddings: Tensor, cam: Tensor, tags: Tensor) -> Aggregated:
        """The same for a single image."""

    def attend(self, embeddings: Tensor, vectors: Tensor, shares: Tensor) -> Aggregated:
        """Lets each cell of `(1, D, H, W)` read vectors `(M, D)`, of which each has a share `(M, C)` of each class."""
        size = embeddings.shape[2:]
        if not len(vectors):
            empty = embeddings.new_zeros(1, self.num_classes + 1, *size)
            return Aggregated(torch.zeros_like(embeddings), empty)
        unit = F.normalize(vectors.float(), dim=1)
        cells = F.normalize(embeddings.float().flatten(2)[0], dim=0)  # (D, HW)
        attention = (unit @ cells / self.temperature).softmax(dim=0)  # (M, HW)
        context = (unit.T @ attention).reshape(1, -1, *size)
        return Aggregated(context, (shares.float().T @ attention).reshape(1, -1, *size))

    def of_regions(self, embeddings: Tensor, regions: Regions) -> Aggregated:
        """Lets each cell read vectors that are of one class each."""
        return self.attend(embeddings, regions.embeddings, F.one_hot(regions.labels, self.num_classes + 1))


class ObjectCompletion(Completion):
    """Cells read the regions of their own photograph, as in OCR (Yuan et al., ECCV 2020).

    Args:
        channels: see `Completion`.
        num_classes: see there.
        temperature: see there.
        passes: how often regions are cut; first from the CAM, then from the attention, which is propagated before.
        thresholds: of regions and of the background, of the CAM.
        attention_thresholds: the same, of the attention.
        steps: of propagation, see `propagate`.
        power: see there.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        *,
        temperature: float,
        passes: int = 1,
        thresholds: tuple[float, float] = (0.5, 0.05),
        attention_thresholds: tuple[float, float] = (0.7, 0.15),
        steps: int = 1,
        power: float = 2.0,
    ) -> None:
        super().__init__(channels, num_classes, temperature=temperature)
        if passes < 1:
            raise ArgumentError("passes", passes, "give at least 1")
        self.thresholds = [thresholds, *[attention_thresholds] * (passes - 1)]
        self.steps = steps
        self.power = power

    def complete(self, embeddings: Tensor, cam: Tensor, tags: Tensor) -> Aggregated:
        """See `Completion.forward`."""
        read, sure, maps = None, torch.ones_like(tags, dtype=torch.float32), cam
        for threshold, background in self.thresholds:
            if read is not None:
                attention = read.class_attention[:, : self.num_classes]
                maps = propagate(attention, embeddings, power=self.power, steps=self.steps)
            regions = extract_regions(embeddings, maps, tags, threshold=threshold)
            regions = select_for_memory(
                regions, embeddings, maps, tags, sure, confidence=0, background_threshold=background
            )
            read = self.of_regions(embeddings, regions)
        assert read is not None
        return read


class DoubleCompletion(Completion):
    """Cells read clusters of the cells of their own photograph, as in A2-Nets (Chen et al., NeurIPS 2018).

    The first attention gathers: spherical k-means, and of each cluster the mean CAM of its cells. The second one
    distributes: a cell mixes the clusters. Nothing tells the background from the rest but a low CAM.

    Args:
        channels: see `Completion`.
        num_classes: see there.
        temperature: see there.
        descriptors: clusters of a photograph.
    """

    def __init__(self, channels: int, num_classes: int, *, temperature: float, descriptors: int = 16) -> None:
        super().__init__(channels, num_classes, temperature=temperature)
        self.descriptors = descriptors

    def complete(self, embeddings: Tensor, cam: Tensor, tags: Tensor) -> Aggregated:
        """See `Completion.forward`."""
        cells = embeddings.float().flatten(2)[0].T  # (HW, D)
        found = cluster(cells, min(self.descriptors, len(cells)), method="spherical", backend="torch", iterations=10)
        members = F.one_hot(found.assignment[0], found.centroids.shape[1]).float()  # (HW, N)
        maps = max_normalise(cam.float()) * (tags > 0)[:, :, None, None]
        means = members.T @ maps[0].flatten(1).T / members.sum(dim=0).clamp_min(1)[:, None]  # (N, L)
        used = found.valid[0]
        return self.attend(embeddings, found.centroids[0][used], F.pad(means, (0, 1))[used])


class CoCompletion(Completion):
    """Cells read cells of other photographs with their tags, as in MCIS (Sun et al., ECCV 2020) and CIAN.

    Of each class the first photographs of the training are kept in the order of the seed, each with cells of its region
    of that class and of its background. A photograph reads those of all its tags.

    Args:
        channels: see `Completion`.
        num_classes: see there.
        temperature: see there.
        partners: photographs of a class.
    """

    stored: Tensor
    labels: Tensor
    counts: Tensor

    def __init__(self, channels: int, num_classes: int, *, temperature: float, partners: int = 1) -> None:
        super().__init__(channels, num_classes, temperature=temperature)
        if partners < 1:
            raise ArgumentError("partners", partners, "give at least 1 photograph of each class")
        self.register_buffer("stored", torch.zeros(num_classes, partners, 2 * CELLS, channels))
        self.register_buffer("labels", torch.full((num_classes, partners, 2 * CELLS), -1))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))

    @torch.no_grad()
    def remember(self, cells: Regions) -> None:
        """Keeps the cells of one photograph, at most `CELLS` of a class, for the classes that still have room."""
        background = cells.labels == self.num_classes
        for label in cells.labels[~background].unique().tolist():
            place = int(self.counts[label])
            if place == self.labels.shape[1]:
                continue
            own = cells.select((cells.labels == label) | background)
            self.stored[label, place, : len(own)] = own.embeddings
            self.labels[label, place, : len(own)] = own.labels
            self.counts[label] += 1

    def complete(self, embeddings: Tensor, cam: Tensor, tags: Tensor) -> Aggregated:
        """See `Completion.forward`."""
        classes = torch.nonzero(tags[0] > 0)[:, 0]
        labels = self.labels[classes].flatten()
        kept = labels >= 0
        own = Regions(self.stored[classes].flatten(0, 2)[kept], labels[kept], torch.zeros_like(labels[kept]))
        return self.of_regions(embeddings, own)
