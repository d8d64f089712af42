"""Means over the batches of all processes together."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from rca_lightning.distributed import place, sum_over_ranks


def means_over_ranks(
    means: Mapping[str, Tensor], counts: Mapping[str, Tensor | int]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Losses whose average over processes is the mean over what all of them have.

    `DistributedDataParallel` averages gradients over processes as if each had as many regions (or pixels, or images)
    as the others. A mean is therefore multiplied by the share of its process. One collective; every process calls it.

    Args:
        means: scalars by name, each the mean over what this process has.
        counts: over how many; where it is 0 the mean counts for nothing.

    Returns:
        The means to minimise, with their graph, and the means over all processes, detached. Of a single process both
        are what was given.

    Example:
        >>> minimised, value = means_over_ranks({"pixels": torch.tensor(2.0)}, {"pixels": 10})
        >>> float(minimised["pixels"]), float(value["pixels"])
        (2.0, 2.0)
    """
    processes, _ = place()
    if processes == 1:
        return dict(means), {name: mean.detach() for name, mean in means.items()}
    own = torch.stack([mean.detach().float() for mean in means.values()])  # (P,)
    number = torch.stack([torch.as_tensor(counts[name], device=own.device).float() for name in means])
    total, summed = sum_over_ranks(torch.stack([number, torch.where(number > 0, own * number, 0)]))
    total = total.clamp_min(1)
    share = number * processes / total
    values = dict(zip(means, summed / total, strict=True))
    return {name: mean * share[index] for index, (name, mean) in enumerate(means.items())}, values
