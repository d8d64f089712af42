"""Which combinations of measures tell of a fault of memory or prototypes, and what helps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from rca_lightning.memory.diagnostics import Diagnostics

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


def advise(found: Diagnostics, class_names: Sequence[str]) -> list[str]:
    """A sentence with the remedy for each fault that some class has.

    No measure warns alone: random vectors look most diverse by their cosine, and prototypes behind a ReLU are all
    alike in direction and may still tell the kinds of regions apart.

    Args:
        found: measures of the classes.
        class_names: their names.

    Returns:
        At most one sentence a fault, with the classes that have it.
    """
    return [
        f"{_listed(class_names, where)}: {finding} ({_means(found, measures, where)}). Remedy: {remedy}"
        for where, finding, measures, remedy in _faults(found)
        if bool(where.any())
    ]


def advise_on_empty(regions: Tensor, with_prototype: Tensor, class_names: Sequence[str]) -> list[str]:
    """Sentences about classes that have nothing, and about a contrast that has nothing to push apart.

    Args:
        regions: `(L,)`, in memory, of each class.
        with_prototype: `(L,)` boolean; it may be on another device.
        class_names: their names.

    Returns:
        One sentence on each of: classes without a region, classes that have regions but no prototype, and a memory
        with regions of one class alone.
    """
    has, with_prototype = (regions > 0).cpu(), with_prototype.cpu()
    found = [
        (~has, "no region in memory, so no prototype", "lower --model.confidence, or give images with these tags"),
        (has & ~with_prototype, "regions in memory, but no prototype", "lower --memory.drop_below"),
    ]
    if len(class_names) > 1 and int(has.sum()) == 1:
        remedy = "give images of other classes, or set --model.contrast false"
        found.append((has, "the only class in memory, so the contrast has no negatives and is 0", remedy))
    return [
        f"{_listed(class_names, where)}: {what}. Remedy: {remedy}" for where, what, remedy in found if bool(where.any())
    ]


def _faults(found: Diagnostics) -> list[tuple[Tensor, str, tuple[str, ...], str]]:
    """Where each fault is, what it is, the measures that show it, the remedy."""
    enough = found.regions >= REGIONS_PER_PROTOTYPE * found.asked
    few_directions = found.effective_rank < FEW_DIRECTIONS * (found.prototypes - 1)
    return [
        (
            (found.mean_cosine > ALIKE) & (few_directions | (found.gain < NO_GAIN)),
            "prototypes are near copies of each other",
            ("mean_cosine", "effective_rank", "gain"),
            "lower --model.num_prototypes, or set --memory.merge_above 0.9 or --memory.regions_per_prototype",
        ),
        (
            (found.mean_cosine < UNLIKE) & (found.coverage < FAR),
            "prototypes look diverse but are far from the regions",
            ("mean_cosine", "coverage"),
            "raise --memory.iterations or --memory.restarts, set --memory.warm_start true, or raise --memory.slots",
        ),
        (
            (found.assignment_entropy < UNEVEN) & (found.dead > 0) & enough,
            "few prototypes have nearly all regions and some have none",
            ("assignment_entropy", "dead"),
            "set --memory.clustering sinkhorn, which fills prototypes evenly, or lower --model.num_prototypes",
        ),
        (
            (found.fill < HALF_FULL) & (found.regions > 0) & ~enough,
            "too few regions for this many prototypes in a memory with room",
            ("regions", "asked", "fill"),
            "lower --model.confidence, so that more regions enter the memory, or lower --model.num_prototypes",
        ),
    ]


def _listed(class_names: Sequence[str], where: Tensor) -> str:
    names = [class_names[index] for index in torch.nonzero(where)[:, 0].tolist()]
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _means(found: Diagnostics, measures: tuple[str, ...], where: Tensor) -> str:
    means = {name: float(getattr(found, name)[where].float().nanmean()) for name in measures}
    return ", ".join(f"{name.replace('_', ' ')} {value:.2f}" for name, value in means.items() if value == value)
