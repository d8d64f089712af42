"""Samplers and data loaders whose batches depend on the seed and the epoch only."""

from __future__ import annotations

import itertools
import os
from collections.abc import Callable, Hashable, Iterator, Sequence, Sized
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from torch.utils.data import DataLoader, Dataset, DistributedSampler, Subset

from rca_lightning.data.crops import CachedCrops
from rca_lightning.data.dataset import BatchedImages, CachedFeatures, TaggedImages
from rca_lightning.data.sample import collate, collate_crops, collate_features, collate_read
from rca_lightning.distributed import world_size_and_rank
from rca_lightning.errors import ArgumentError


class EpochSampler(DistributedSampler[Any]):
    """Shuffles for training by seed and epoch alone; yields pairs (epoch, index).

    Every process gets equally many images; up to world size - 1 images come twice in an epoch. Without `repeats` the
    index -1 comes in their place.

    Args:
        dataset: the data set, only asked for its length.
        seed: seed of the order, the same in every process.
        shuffle: False keeps the order of the data set.
        seen: returns, at the start of an epoch, how many of its images this process has had before a resume; they are
            left out.
        repeats: see above.

    Example:
        >>> sampler = EpochSampler([0, 0, 0], seed=1, shuffle=False)
        >>> sampler.set_epoch(4)
        >>> list(sampler)
        [(4, 0), (4, 1), (4, 2)]
    """

    def __init__(
        self,
        dataset: Sized,
        *,
        seed: int,
        shuffle: bool = True,
        seen: Callable[[], int] | None = None,
        repeats: bool = True,
    ) -> None:
        world_size, rank = world_size_and_rank()
        super().__init__(cast("Dataset[Any]", dataset), num_replicas=world_size, rank=rank, shuffle=shuffle, seed=seed)
        self._seen = seen
        self._repeats = repeats
        self._length = len(dataset)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, first = self.epoch, self._seen() if self._seen else 0
        places = range(self.rank, self.total_size, self.num_replicas)  # in the order of all processes together
        own = (
            (epoch, index if self._repeats or place < self._length else -1)
            for place, index in zip(places, super().__iter__(), strict=True)
        )
        return itertools.islice(own, first, None)


class ShardSampler(UnrepeatedDistributedSampler):
    """Gives every image to exactly one process, in order; PyTorch's own sampler repeats some.

    Args:
        dataset: the data set, only asked for its length.

    Raises:
        ArgumentError: fewer images than processes: one with nothing to do would never join the others.

    Example:
        >>> list(ShardSampler(["a", "b", "c"]))
        [0, 1, 2]
    """

    def __init__(self, dataset: Sized) -> None:
        world_size, rank = world_size_and_rank()
        if len(dataset) < world_size:
            raise ArgumentError(
                "devices", world_size, f"more processes than the {len(dataset)} images to evaluate; use fewer"
            )
        super().__init__(dataset, num_replicas=world_size, rank=rank, shuffle=False)

    def __iter__(self) -> Iterator[Any]:
        return iter(range(self.rank, self.total_size, self.num_replicas))  # no list of them all


class GroupedBatchSampler(ShardSampler):
    """Batches the images of a shard by key, in the order of the first image of each batch; yields lists of indices.

    Args:
        keys: of each image, such as its size; only images of equal keys share a batch.
        batch_size: images of a batch at most.

    Raises:
        ArgumentError: fewer images than processes.

    Example:
        >>> list(GroupedBatchSampler(["wide", "tall", "wide", "wide"], batch_size=2))
        [[0, 2], [1], [3]]
    """

    def __init__(self, keys: Sequence[Hashable], *, batch_size: int) -> None:
        super().__init__(keys)
        self._batches: list[list[int]] = []
        open_batches: dict[Hashable, list[int]] = {}
        for index in range(self.rank, len(keys), self.num_replicas):
            batch = open_batches.get(keys[index])
            if batch is None or len(batch) == batch_size:
                batch = open_batches[keys[index]] = []
                self._batches.append(batch)
            batch.append(index)

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self._batches)

    def __len__(self) -> int:
        return len(self._batches)


def run_seed() -> int:
    """Return the seed of the run: the one given to `seed_everything`, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class LazyDataLoader(DataLoader[Any]):
    """Starts to load at the first batch, not when its iterator is made.

    Lightning makes the iterator before it restores a checkpoint and sets the epoch of the sampler, so workers that
    prefetch would begin with the images of another epoch.
    """

    def __iter__(self) -> Any:
        def late() -> Iterator[Any]:
            yield from DataLoader.__iter__(self)

        return late()


def training_loader(
    dataset: TaggedImages | CachedFeatures | CachedCrops,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    pin_memory: bool | None,
    seen_batches: Callable[[], int] = lambda: 0,
) -> DataLoader[Any]:
    """Return the loader of training crops, of images or of features, or of the features of whole photographs.

    Args:
        dataset: images with an augmentation to one size, crops of features, or features of photographs of any size.
        batch_size: images of a batch in each process. An incomplete last batch of crops is dropped, unless
            there is no other.
        num_workers: loading processes.
        shuffle: whether to shuffle anew in each epoch.
        pin_memory: page-locked memory; None means whether a CUDA device is there.
        seen_batches: tells at the start of an epoch how many batches of it were trained on in a run before.
    """
    is_crops = not isinstance(dataset, CachedFeatures)
    together = {TaggedImages: collate, CachedCrops: collate_crops, CachedFeatures: collate_features}
    sampler = EpochSampler(
        dataset, seed=run_seed(), shuffle=shuffle, seen=lambda: seen_batches() * batch_size, repeats=is_crops
    )
    return LazyDataLoader(
        dataset=dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=is_crops and len(sampler) >= batch_size,
        collate_fn=together[type(dataset)],
        **_worker_options(num_workers, pin_memory),
    )


def evaluation_loader(
    dataset: TaggedImages, *, batch_size: int, num_workers: int, pin_memory: bool | None
) -> DataLoader[Any]:
    """Return the loader of whole photographs: in order and one at a time, or in batches of equal sizes.

    Args:
        dataset: images without an augmentation.
        batch_size: images of a batch at most. Above 1 the head of every file is read first, to know the sizes.
        num_workers: loading processes.
        pin_memory: page-locked memory; None means whether a CUDA device is there.
    """
    if batch_size == 1:
        together = partial(collate_read, num_classes=dataset.num_classes)
        batching: dict[str, Any] = {"batch_size": 1, "sampler": ShardSampler(dataset), "collate_fn": together}
        images: Dataset[Any] = dataset
    else:
        images = BatchedImages(dataset)
        batching = {"batch_size": None, "sampler": GroupedBatchSampler(images.keys(), batch_size=batch_size)}
    return DataLoader(dataset=images, **batching, **_worker_options(num_workers, pin_memory))


def photograph_loader(
    images: TaggedImages, rows: Sequence[int] | npt.NDArray[np.int64], *, num_workers: int
) -> DataLoader[Any]:
    """Return the loader of some photographs, one at a time and as they are, in the order of `rows`."""
    return DataLoader(
        Subset(images, cast("Sequence[int]", rows)),
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_start_worker,
        collate_fn=_as_is,
    )


def _as_is(sample: Any) -> Any:
    return sample


def _worker_options(num_workers: int, pin_memory: bool | None) -> dict[str, Any]:
    return {
        "num_workers": num_workers,
        "persistent_workers": num_workers > 0,
        "pin_memory": torch.cuda.is_available() if pin_memory is None else pin_memory,
        "worker_init_fn": _start_worker,
        "generator": torch.Generator(),  # else every epoch would draw from the generator the network uses
    }


def _start_worker(worker_id: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the loading processes share the cores already
