"""Data loaders whose batches depend on the seed and the epoch only."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

from rca_lightning.data.dataset import BatchedImages, TaggedImages
from rca_lightning.data.sample import collate, collate_read
from rca_lightning.data.samplers import EpochSampler, LikeBatchSampler, ShardSampler


def run_seed() -> int:
    """Return the seed of the run: the one given to `seed_everything`, else 0."""
    return int(os.environ.get("PL_GLOBAL_SEED", "0"))


class LateLoader(DataLoader[Any]):
    """A DataLoader that begins to load when the first batch is asked for, not when its iterator is made.

    Lightning makes the iterator before it restores a checkpoint, and only then tells the sampler the epoch: loading
    processes that work ahead would begin with the images of another epoch.
    """

    def __iter__(self) -> Any:
        def late() -> Iterator[Any]:
            yield from DataLoader.__iter__(self)

        return late()


def training_loader(
    dataset: TaggedImages,
    *,
    batch_size: int,
    num_workers: int,
    shuffle: bool,
    pin_memory: bool | None,
    seen_batches: Callable[[], int] = lambda: 0,
) -> DataLoader[Any]:
    """Return the loader of training crops.

    Args:
        dataset: images with an augmentation to one size.
        batch_size: images of a batch in each process. An incomplete last batch is dropped, unless
            there is no other.
        num_workers: loading processes.
        shuffle: whether to shuffle anew in each epoch.
        pin_memory: page-locked memory; None means whether a CUDA device is there.
        seen_batches: tells at the start of an epoch how many batches of it were trained on in a run before.
    """

    def seen() -> int:
        return seen_batches() * batch_size

    sampler = EpochSampler(dataset, seed=run_seed(), shuffle=shuffle, seen=seen)
    return LateLoader(
        dataset=dataset,
        batch_size=batch_size,
        sampler=sampler,
        drop_last=len(sampler) >= batch_size,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=_pin(pin_memory),
        collate_fn=collate,
        worker_init_fn=_start_worker,
        generator=torch.Generator(),  # else every epoch would draw from the generator the network uses
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
        batching = {"batch_size": None, "sampler": LikeBatchSampler(images.keys(), batch_size=batch_size)}
    return DataLoader(
        dataset=images,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=_pin(pin_memory),
        worker_init_fn=_start_worker,
        generator=torch.Generator(),
        **batching,
    )


def _pin(pin_memory: bool | None) -> bool:
    return torch.cuda.is_available() if pin_memory is None else pin_memory


def _start_worker(worker_id: int) -> None:
    import cv2

    cv2.setNumThreads(0)  # the loading processes share the cores already
