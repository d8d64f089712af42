"""What the memory and the prototypes of each class are like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.errors import ArgumentError
from rca_lightning.memory.advice import advise
from rca_lightning.memory.clusters import Clusters
from rca_lightning.memory.diversity import (
    between_class_cosine,
    effective_prototypes,
    effective_rank,
    max_cosine,
    within_class_cosine,
)

# Class by class only: their means say nothing that a setting does not.
_NOT_LOGGED = ("regions", "prototypes", "asked", "between_class_cosine")
_CLASSES_AT_ONCE = 16


@dataclass
class Diagnostics:
    """Measures of every class at one clustering, on the CPU, each `(C,)`; NaN where a class has none.

    No measure is good or bad by itself. Random vectors have mean cosine 0, the most diverse prototypes there
    are by that number, and cover no region; only combinations are worth a warning, see `warnings`.

    Attributes:
        regions: int64, regions in memory.
        prototypes: int64, valid prototypes.
        asked: int64, prototypes the class was to get.
        mean_cosine: between different prototypes of the class.
        max_cosine: of the two prototypes most alike.
        effective_rank: directions in which the prototypes differ from their mean, see `effective_rank`.
        coverage: mean cosine of the regions to their nearest prototype.
        gain: share of the cosine distance of the regions to one prototype, their mean direction, that all the
            prototypes together take away: 0 if they do no better than that one, 1 if they meet every region.
        assignment_entropy: of the cluster sizes over the logarithm of `asked`: 1 if all prototypes have equally many
            regions (also if there is but one), 0 if one prototype has all.
        dead: int64, how many of the prototypes `asked` for have no region or are not there.
        fill: share of the slots in use.
        mean_age: training steps since the regions were written.
        between_class_cosine: scalar, between prototypes of different classes.
    """

    regions: Tensor
    prototypes: Tensor
    asked: Tensor
    mean_cosine: Tensor
    max_cosine: Tensor
    effective_rank: Tensor
    coverage: Tensor
    gain: Tensor
    assignment_entropy: Tensor
    dead: Tensor
    fill: Tensor
    mean_age: Tensor
    between_class_cosine: Tensor

    def logged(self, prefix: str) -> dict[str, float]:
        """Means over the classes with regions as `<prefix>/<name>`; what no class has is left out, so none is NaN."""
        present = self.regions > 0
        means = {f.name: getattr(self, f.name)[present].float().nanmean() for f in fields(self) if _is_logged(f.name)}
        means["between_class_cosine"] = self.between_class_cosine
        return {f"{prefix}/{name}": float(value) for name, value in means.items() if not torch.isnan(value)}

    def as_dict(self, class_names: Sequence[str]) -> dict[str, dict[str, int | float | None]]:
        """By class name and measure, numbers only, `None` for NaN: for JSON and for checkpoints.

        Raises:
            ArgumentError: if there are not `C` different names.
        """
        self._check(class_names)
        columns = {f.name: getattr(self, f.name).tolist() for f in fields(self) if f.name != "between_class_cosine"}
        return {
            label: {name: _number(values[row]) for name, values in columns.items()}
            for row, label in enumerate(class_names)
        }

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """A sentence with the remedy for each combination of measures that tells of a fault; see `advise`.

        Raises:
            ArgumentError: if there are not `C` different names.
        """
        self._check(class_names)
        return advise(self, class_names)

    def _check(self, class_names: Sequence[str]) -> None:
        if len(set(class_names)) != len(self.regions) or len(class_names) != len(self.regions):
            raise ArgumentError("class_names", list(class_names), f"give {len(self.regions)} different names")


@torch.no_grad()
def diagnose(
    points: Tensor, valid: Tensor, clusters: Clusters, ages: Tensor, *, asked: Tensor | None = None
) -> Diagnostics:
    """Measure memory and prototypes of every class.

    Args:
        points: `(C, N, D)`, the regions that were clustered; any length, since directions are compared, and on any
            device: they are read a few classes at a time.
        valid: `(C, N)` boolean, slots in use. The others may hold anything.
        clusters: what clustering made of them, `K` prototypes a class.
        ages: `(C, N)`, training steps since a slot was written, -1 where empty.
        asked: `(C,)`, prototypes a class was to get; `None`: `K`. Give `clusters.valid.sum(1)` where fewer are
            meant, as after merging, or they count as dead.

    Returns:
        The measures, on the CPU.

    Raises:
        ArgumentError: if a shape does not fit.

    Example:
        >>> from rca_lightning.memory.clustering import kmeans
        >>> points, valid = torch.eye(4)[None], torch.ones(1, 4, dtype=torch.bool)
        >>> found = diagnose(points, valid, kmeans(points, 4), ages=torch.zeros(1, 4))
        >>> round(found.coverage.item(), 3), round(found.effective_rank.item(), 3), found.dead.item()
        (1.0, 3.0, 0)
    """
    number = clusters.valid.shape[1]
    _check_shapes(points, valid, clusters, ages, asked)
    valid, ages = valid.to(clusters.valid.device), ages.to(clusters.valid.device)
    regions = valid.sum(dim=1)
    asked = torch.full_like(regions, number) if asked is None else asked.to(regions.device)
    coverage, gain = _coverage(points, valid, clusters)
    alive = ((clusters.sizes > 0) & clusters.valid).sum(dim=1)
    spread = effective_prototypes(clusters.assignment, number).log() / asked.clamp_min(2).log()
    known = valid & (ages >= 0)
    age = torch.where(known, ages, 0).sum(dim=1).float() / known.sum(dim=1)
    measures = {
        "regions": regions,
        "prototypes": clusters.valid.sum(dim=1),
        "asked": asked,
        "mean_cosine": within_class_cosine(clusters.centroids, clusters.valid),
        "max_cosine": max_cosine(clusters.centroids, clusters.valid),
        "effective_rank": effective_rank(clusters.centroids, clusters.valid),
        "coverage": coverage,
        "gain": gain,
        "assignment_entropy": spread.masked_fill(asked < 2, 1.0).masked_fill(alive == 0, torch.nan),
        "dead": (asked - alive).clamp_min(0),
        "fill": valid.float().mean(dim=1),
        "mean_age": age,
        "between_class_cosine": between_class_cosine(clusters.centroids, clusters.valid),
    }
    return Diagnostics(**{name: value.cpu() for name, value in measures.items()})


def _coverage(points: Tensor, valid: Tensor, clusters: Clusters) -> tuple[Tensor, Tensor]:
    """Mean cosine to the nearest prototype, and what it gains over a single prototype, each `(C,)`."""
    prototypes = F.normalize(clusters.centroids.float(), dim=2)
    sums = []
    # A few classes at a time: directions of the whole memory would be a second memory.
    for first in range(0, len(points), _CLASSES_AT_ONCE):
        rows = slice(first, first + _CLASSES_AT_ONCE)
        part = points[rows].to(prototypes.device).float()
        unit = F.normalize(torch.where(valid[rows, :, None], part, 0.0), dim=2)
        cosines = torch.bmm(unit, prototypes[rows].transpose(1, 2))  # (c, N, K)
        nearest = cosines.masked_fill(~clusters.valid[rows, None], -torch.inf).amax(dim=2)
        sums.append(torch.stack([nearest.masked_fill(~valid[rows], 0).sum(dim=1), unit.sum(dim=1).norm(dim=1)]))
    covered, length = torch.cat(sums, dim=1) / valid.sum(dim=1)  # each (C,)
    coverage = covered.masked_fill(~clusters.valid.any(dim=1), torch.nan)
    # Mean cosine of unit vectors to their mean direction = length of their mean (Mardia and Jupp, Directional
    # Statistics, 2000, section 2.3). Below the rounding of float32 there is no distance left to gain.
    distance = 1 - length
    return coverage, 1 - (1 - coverage) / distance.masked_fill(distance < 1e-6, torch.nan)


def _check_shapes(points: Tensor, valid: Tensor, clusters: Clusters, ages: Tensor, asked: Tensor | None) -> None:
    fits = (
        points.ndim == 3
        and valid.shape == ages.shape == clusters.assignment.shape == points.shape[:2]
        and clusters.centroids.shape == (len(points), clusters.valid.shape[1], points.shape[2])
        and (asked is None or asked.shape == (len(points),))
    )
    if not fits:
        given = (points, valid, clusters.centroids, clusters.assignment, ages, *(() if asked is None else (asked,)))
        raise ArgumentError(
            "points, valid, clusters, ages, asked",
            [tuple(tensor.shape) for tensor in given],
            "give (C, N, D), (C, N), the clusters of these points, (C, N) and (C,)",
        )


def _is_logged(name: str) -> bool:
    return name not in _NOT_LOGGED


def _number(value: Any) -> int | float | None:
    return None if value != value else value
