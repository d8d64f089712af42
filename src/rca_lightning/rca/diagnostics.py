"""Diagnostics of prototypes: how alike they are, how well they cover the regions, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.clustering.clusters import Clusters
from rca_lightning.errors import ArgumentError

# Squared distance from their mean, in unit vectors, that float32 leaves between copies.
_ROUNDING = 1e-10
# Eigenvalues of a float32 Gram matrix, as a share of the largest, below which they are rounding.
_NOISE = 1e-6
# Of `diagnose`, to bound what is held at once.
_CLASSES_AT_ONCE = 16
# Class by class only: their means say nothing that a setting does not.
_NOT_LOGGED = ("regions", "prototypes", "num_requested", "between_class_cosine")

# With a ResNet-50 trained on photographs (20 classes, K = 10, 26 to 200 regions) classes have mean cosine 0.43 to
# 0.75, rank 76 % to 97 % of the highest, coverage 0.75 to 0.93, gain 0.27 to 0.72, entropy 0.76 to 0.98. Random
# vectors in their place have mean cosine 0, coverage up to 0.04 and negative gain. The limits lie outside of these.
ALIKE = 0.9  # mean cosine: 26 degrees apart; in those runs regions are 21 to 41 degrees from their prototype
FEW_DIRECTIONS = 0.5  # effective rank as a share of k - 1, the highest for k prototypes
NO_GAIN = 0.1  # k-means of 200 to 500 noisy copies of one vector in 128 to 512 channels gains 0.03 to 0.08
UNLIKE = 0.3  # mean cosine: lower than between prototypes of one class that follow their regions
FAR = 0.5  # coverage: regions 60 degrees from the nearest prototype
UNEVEN = 0.5  # entropy: as if the square root of K prototypes were used
HALF_FULL = 0.5  # fill: below it slots are not what limits the number of regions
REGIONS_PER_PROTOTYPE = 2  # with fewer a prototype is a region, not a mean

_NAMED = 5  # classes named in a warning


def within_class_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine between different prototypes of a class: 1 means copies, lower means they differ.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.

    Returns:
        `(C,)`; NaN for a class with fewer than two prototypes.
    """
    unit = _unit(prototypes, valid)
    counts = valid.sum(dim=1).float()
    # The sum over all pairs is the squared length of the sum; the k self-pairs of cosine 1 come off.
    pairs = unit.sum(dim=1).square().sum(dim=1) - counts
    mean = pairs / (counts * (counts - 1)).clamp_min(1)
    return mean.masked_fill(counts < 2, torch.nan)


def max_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Cosine of the two prototypes of a class that are most alike, `(C,)`; NaN with fewer than two.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.
    """
    unit = _unit(prototypes, valid)
    cosines = torch.bmm(unit, unit.transpose(1, 2))  # (C, K, K)
    itself = torch.eye(valid.shape[1], dtype=torch.bool, device=valid.device)
    pair = valid[:, :, None] & valid[:, None, :] & ~itself
    return cosines.masked_fill(~pair, -torch.inf).amax(dim=(1, 2)).masked_fill(valid.sum(dim=1) < 2, torch.nan)


def between_class_cosine(prototypes: Tensor, valid: Tensor) -> Tensor:
    """Mean cosine between prototypes of different classes, a scalar; NaN with fewer than two classes in use.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.
    """
    unit = _unit(prototypes, valid)
    sums, counts = unit.sum(dim=1), valid.sum(dim=1).float()  # (C, D), (C,)
    pairs = sums.sum(dim=0).square().sum() - sums.square().sum()
    number = counts.sum().square() - counts.square().sum()
    return torch.where(number > 0, pairs / number.clamp_min(1), torch.full_like(pairs, torch.nan))


def effective_rank(prototypes: Tensor, valid: Tensor) -> Tensor:
    """In how many directions the prototypes of a class differ from their mean.

    The exponential of the entropy of the singular values, normalised to sum 1, of the unit prototypes after their
    mean is taken off (Roy and Vetterli, The effective rank, EUSIPCO 2007). It does not see how far they
    differ: copies with a little noise have full rank.

    Args:
        prototypes: `(C, K, D)`.
        valid: `(C, K)` boolean.

    Returns:
        `(C,)` on the CPU, in `[1, k - 1]` for `k` prototypes, 1 also for exact copies; NaN with fewer than two.
    """
    unit = _unit(prototypes, valid)
    counts = valid.sum(dim=1)
    mean = unit.sum(dim=1, keepdim=True) / counts.clamp_min(1)[:, None, None]
    centred = (unit - mean) * valid[:, :, None]
    # K x K instead of K x D; its eigenvalues are the squared singular values. Not every device decomposes.
    eigenvalues = torch.linalg.eigvalsh(torch.bmm(centred, centred.transpose(1, 2)).cpu().double())  # (C, K) ascending
    eigenvalues = eigenvalues * (eigenvalues > _NOISE * eigenvalues[:, -1:])
    singular = eigenvalues.sqrt()
    rank = _entropy(singular / singular.sum(dim=1, keepdim=True).clamp_min(1e-30)).exp().float()
    counts = counts.cpu()
    copies = eigenvalues.sum(dim=1) <= _ROUNDING * counts
    return rank.masked_fill(copies, 1.0).masked_fill(counts < 2, torch.nan)


def _unit(prototypes: Tensor, valid: Tensor) -> Tensor:
    return F.normalize(prototypes.float(), dim=2) * valid[:, :, None]


def _entropy(share: Tensor) -> Tensor:
    """Of each row `(C, K)`, in nats, `(C,)`."""
    parts: Tensor = torch.special.entr(share)
    return parts.sum(dim=1)


@dataclass
class Diagnostics:
    """Measures of every class at one clustering, on the CPU, each `(C,)`; NaN where a class has none.

    No measure is good or bad by itself. Random vectors have mean cosine 0, the most diverse prototypes there
    are by that number, and cover no region; only combinations are worth a warning, see `warnings`.

    Attributes:
        regions: int64, regions in memory.
        prototypes: int64, valid prototypes.
        num_requested: int64, prototypes the class was to get.
        mean_cosine: between different prototypes of the class.
        max_cosine: of the two prototypes most alike.
        effective_rank: directions in which the prototypes differ from their mean, see `effective_rank`.
        coverage: mean cosine of the regions to their nearest prototype.
        gain: share of the cosine distance of the regions to one prototype, their mean direction, that all the
            prototypes together take away: 0 if they do no better than that one, 1 if they meet every region.
        assignment_entropy: of the cluster sizes over the logarithm of `num_requested`: 1 if all prototypes have
            equally many regions (also if there is but one), 0 if one prototype has all.
        dead: int64, how many of `num_requested` prototypes have no region or are not there.
        fill: share of the slots in use.
        mean_age: training steps since the regions were written.
        between_class_cosine: scalar, between prototypes of different classes.
    """

    regions: Tensor
    prototypes: Tensor
    num_requested: Tensor
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
        names = [field.name for field in fields(self) if field.name not in _NOT_LOGGED]
        means = {name: getattr(self, name)[present].float().nanmean() for name in names}
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

    def warnings(self, class_names: Sequence[str], *, confidence: float | None = None) -> list[str]:
        """Advice on each fault that some class has: at most one sentence a fault, with its classes and remedy.

        No measure warns alone: random vectors look most diverse by their cosine, and prototypes behind a ReLU are all
        alike in direction and may still tell the kinds of regions apart.

        Args:
            class_names: names of the `C` classes.
            confidence: that regions had to reach; at 0 no advice is to lower it.

        Raises:
            ArgumentError: if there are not `C` different names.
        """
        self._check(class_names)
        return [
            f"{_listed(class_names, where)}: {fault} ({self._means(measures, where)}). Remedy: {remedy}"
            for where, fault, measures, remedy in self._faults(confidence)
            if bool(where.any())
        ]

    def _faults(self, confidence: float | None) -> list[tuple[Tensor, str, tuple[str, ...], str]]:
        """Where each fault is, what it is, the measures that show it, the remedy."""
        enough = self.regions >= REGIONS_PER_PROTOTYPE * self.num_requested
        fewer = "lower --model.num_prototypes"
        more = "" if confidence == 0 else "lower --model.confidence, so that more regions enter the memory, or "
        few_directions = self.effective_rank < FEW_DIRECTIONS * (self.prototypes - 1)
        return [
            (
                (self.mean_cosine > ALIKE) & (few_directions | (self.gain < NO_GAIN)),
                "prototypes are near copies of each other",
                ("mean_cosine", "effective_rank", "gain"),
                f"{fewer}, or set --memory.regions_per_prototype",
            ),
            (
                (self.mean_cosine < UNLIKE) & (self.coverage < FAR),
                "prototypes look diverse but are far from the regions",
                ("mean_cosine", "coverage"),
                "raise --memory.iterations or --memory.slots",
            ),
            (
                (self.assignment_entropy < UNEVEN) & (self.dead > 0) & enough,
                "few prototypes have nearly all regions and some have none",
                ("assignment_entropy", "dead"),
                f"set --memory.clustering sinkhorn, which fills prototypes evenly, or {fewer}",
            ),
            (
                (self.fill < HALF_FULL) & (self.regions > 0) & ~enough,
                "too few regions for this many prototypes in a memory with room",
                ("regions", "num_requested", "fill"),
                more + fewer,
            ),
        ]

    def _means(self, measures: tuple[str, ...], where: Tensor) -> str:
        means = {name: float(getattr(self, name)[where].float().nanmean()) for name in measures}
        return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in means.items() if value == value)

    def _check(self, class_names: Sequence[str]) -> None:
        if len(set(class_names)) != len(self.regions) or len(class_names) != len(self.regions):
            raise ArgumentError("class_names", list(class_names), f"give {len(self.regions)} different names")


@torch.no_grad()
def diagnose(
    points: Tensor, valid: Tensor, clusters: Clusters, ages: Tensor, *, num_requested: Tensor | None = None
) -> Diagnostics:
    """Measure memory and prototypes of every class.

    Args:
        points: `(C, N, D)`, the regions that were clustered; any length, since directions are compared, and on any
            device: they are read a few classes at a time.
        valid: `(C, N)` boolean, slots in use. The others may hold anything.
        clusters: what clustering made of them, `K` prototypes a class.
        ages: `(C, N)`, training steps since a slot was written, -1 where empty.
        num_requested: `(C,)`, prototypes a class was to get; `None`: `K`. Give `clusters.valid.sum(1)` where fewer are
            meant, as after dropping some, or they count as dead.

    Returns:
        The measures, on the CPU.

    Raises:
        ArgumentError: if a shape does not fit.

    Example:
        >>> from rca_lightning.clustering.cluster import kmeans
        >>> points, valid = torch.eye(4)[None], torch.ones(1, 4, dtype=torch.bool)
        >>> measured = diagnose(points, valid, kmeans(points, 4), ages=torch.zeros(1, 4))
        >>> round(measured.coverage.item(), 3), round(measured.effective_rank.item(), 3), measured.dead.item()
        (1.0, 3.0, 0)
    """
    number = clusters.valid.shape[1]
    fits = (
        points.ndim == 3
        and valid.shape == ages.shape == clusters.assignment.shape == points.shape[:2]
        and clusters.centroids.shape == (len(points), number, points.shape[2])
        and (num_requested is None or num_requested.shape == (len(points),))
    )
    if not fits:
        shapes = [tuple(t.shape) for t in (points, valid, clusters.centroids, ages, num_requested) if t is not None]
        remedy = "give (C, N, D), (C, N), the clusters of these points, (C, N) and (C,)"
        raise ArgumentError("points, valid, clusters, ages, num_requested", shapes, remedy)
    valid, ages = valid.to(clusters.valid.device), ages.to(clusters.valid.device)
    regions = valid.sum(dim=1)
    num_requested = torch.full_like(regions, number) if num_requested is None else num_requested.to(regions.device)
    coverage, gain = _coverage(points, valid, clusters)
    alive = ((clusters.sizes > 0) & clusters.valid).sum(dim=1)
    shares = clusters.sizes / clusters.sizes.sum(dim=1, keepdim=True).clamp_min(1)  # (C, K)
    evenness = _entropy(shares) / num_requested.clamp_min(2).log()
    known = valid & (ages >= 0)
    age = torch.where(known, ages, 0).sum(dim=1).float() / known.sum(dim=1)
    measures = {
        "regions": regions,
        "prototypes": clusters.valid.sum(dim=1),
        "num_requested": num_requested,
        "mean_cosine": within_class_cosine(clusters.centroids, clusters.valid),
        "max_cosine": max_cosine(clusters.centroids, clusters.valid),
        "effective_rank": effective_rank(clusters.centroids, clusters.valid),
        "coverage": coverage,
        "gain": gain,
        "assignment_entropy": evenness.masked_fill(num_requested < 2, 1.0).masked_fill(alive == 0, torch.nan),
        "dead": (num_requested - alive).clamp_min(0),
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


def advise_on_empty(
    regions: Tensor,
    with_prototype: Tensor,
    class_names: Sequence[str],
    *,
    confidence: float | None = None,
    contrast: bool = True,
) -> list[str]:
    """Advice on classes without regions or prototypes, and on a contrast without negatives.

    Args:
        regions: `(L,)`, in memory, of each class.
        with_prototype: `(L,)` boolean; it may be on another device.
        class_names: their names.
        confidence: that regions had to reach; at 0 no advice is to lower it.
        contrast: whether there is one.

    Returns:
        One sentence on each of: classes without a region, classes that have regions but no prototype, and a memory
        with regions of one class alone.
    """
    present, with_prototype = (regions > 0).cpu(), with_prototype.cpu()
    more = "lower --model.region_threshold" if confidence == 0 else "lower --model.confidence"
    faults = [
        (~present, "no region in memory, so no prototype", f"{more}, or give images with these tags"),
        (present & ~with_prototype, "regions in memory, but no prototype", "lower --memory.drop_below"),
    ]
    if contrast and len(class_names) > 1 and int(present.sum()) == 1:
        remedy = "give images of other classes, or set --model.contrast false"
        faults.append((present, "the only class in memory, so the contrast has no negatives and is 0", remedy))
    return [
        f"{_listed(class_names, where)}: {what}. Remedy: {remedy}"
        for where, what, remedy in faults
        if bool(where.any())
    ]


def _listed(class_names: Sequence[str], where: Tensor) -> str:
    names = [class_names[index] for index in torch.nonzero(where)[:, 0].tolist()]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _number(value: Any) -> int | float | None:
    return None if value != value else value
