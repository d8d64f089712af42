"""Which images a process sees, and in which order.

Both samplers derive from `DistributedSampler`, which Lightning leaves as it is and tells the epoch.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from typing import Any, cast

from torch.utils.data import Dataset, DistributedSampler

from rca_lightning.distributed import place
from rca_lightning.errors import ArgumentError


class EpochSampler(DistributedSampler[Any]):
    """Shuffles for training and says which epoch it is: yields pairs (epoch, index).

    The order is a function of seed and epoch, so a run that is resumed sees what an uninterrupted one sees.
    Every process gets equally many images; up to world size - 1 images come twice in an epoch.

    Args:
        dataset: the data set, only asked for its length.
        seed: seed of the order, the same in every process.
        shuffle: False keeps the order of the data set.
        seen: tells at the start of an epoch how many images of it this process has had in a run before; they are left
            out.

    Example:
        >>> sampler = EpochSampler([0, 0, 0], seed=1, shuffle=False)
        >>> sampler.set_epoch(4)
        >>> list(sampler)
        [(4, 0), (4, 1), (4, 2)]
    """

    def __init__(
        self, dataset: Sized, *, seed: int, shuffle: bool = True, seen: Callable[[], int] | None = None
    ) -> None:
        world_size, rank = place()
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self._seen = seen

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first = self.epoch, self._seen() if self._seen else 0
        return iter([(epoch, index) for index in super().__iter__()][first:])


class ShardSampler(DistributedSampler[Any]):
    """Gives every image to exactly one process, in order: for exact scores and one prediction an image.

    Processes may differ by one image. PyTorch's own sampler repeats images instead.

    Args:
        dataset: the data set, only asked for its length.

    Raises:
        ArgumentError: fewer images than processes: one with nothing to do would never join the others.

    Example:
        >>> list(ShardSampler(["a", "b", "c"]))
        [0, 1, 2]
    """

    def __init__(self, dataset: Sized) -> None:
        world_size, rank = place()
        if len(dataset) < world_size:
            raise ArgumentError(
                "devices", world_size, f"more processes than the {len(dataset)} images to evaluate; use fewer"
            )
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=world_size, rank=rank, shuffle=False)
        self._indices = range(rank, len(dataset), world_size)

    def __iter__(self) -> Iterator[int]:
        return iter(self._indices)

    def __len__(self) -> int:
        return len(self._indices)


class LikeBatchSampler(DistributedSampler[Any]):
    """Gives every image to exactly one process, in batches of images that are alike; yields lists of indices.

    A process has the images that `ShardSampler` gives it and puts those with one key together, in the order of the
    first image of each batch.

    Args:
        keys: of each image, such as its size; only images of equal keys share a batch.
        batch_size: images of a batch at most.

    Raises:
        ArgumentError: fewer images than processes.

    Example:
        >>> list(LikeBatchSampler(["wide", "tall", "wide", "wide"], batch_size=2))
        [[0, 2], [1], [3]]
    """

    def __init__(self, keys: Sequence[Hashable], *, batch_size: int) -> None:
        indices = ShardSampler(keys)
        super().__init__(cast("Dataset[Any]", keys), num_replicas=indices.num_replicas, rank=indices.rank)
        self._batches: list[list[int]] = []
        open_batches: dict[Hashable, list[int]] = {}
        for index in indices:
            batch = open_batches.get(keys[index])
            if batch is None or len(batch) == batch_size:
                batch = open_batches[keys[index]] = []
                self._batches.append(batch)
            batch.append(index)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)
