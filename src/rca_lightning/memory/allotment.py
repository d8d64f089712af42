"""How many prototypes a class gets."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError


def prototypes_per_class(counts: Tensor, num_prototypes: int, regions_per_prototype: int) -> Tensor:
    """Prototypes of each class by the regions it has, so that each rests on enough of them.

    Args:
        counts: `(C,)`, regions of each class.
        num_prototypes: the most a class may have, `K`.
        regions_per_prototype: regions that a further prototype takes.

    Returns:
        `(C,)` int64 in `[0, K]`: `counts // regions_per_prototype`, at least 1 where there is a region.

    Raises:
        ArgumentError: if a number is below 1.

    Example:
        >>> prototypes_per_class(torch.tensor([0, 3, 45, 500]), 10, 20).tolist()
        [0, 1, 2, 10]
    """
    for name, value in (("num_prototypes", num_prototypes), ("regions_per_prototype", regions_per_prototype)):
        if value < 1:
            raise ArgumentError(name, value, "give at least 1")
    wanted = torch.div(counts, regions_per_prototype, rounding_mode="floor").long().clamp(1, num_prototypes)
    return wanted * (counts > 0)
