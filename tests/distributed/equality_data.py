"""Batches of which it is known which process gets what."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rca_lightning.data.sample import collate
from rca_lightning.distributed import world_size_and_rank

CLASSES = 3
IGNORED = 255
SIDE = 32


class Noise(Dataset[Any]):
    """Images of coarse noise with tags, and masks of which every second is unlabelled but for a corner.

    Args:
        tags: `(I, CLASSES)`.
    """

    def __init__(self, tags: Tensor) -> None:
        draw = torch.Generator().manual_seed(5)
        small = torch.randn(len(tags), 3, 8, 8, generator=draw)
        self.images = torch.nn.functional.interpolate(small, size=(SIDE, SIDE), mode="bilinear")
        self.masks = torch.randint(CLASSES + 1, (len(tags), SIDE, SIDE), generator=draw)
        self.masks[1::2, 4:] = IGNORED
        self.tags = tags

    def __len__(self) -> int:
        return len(self.tags)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "image": self.images[index],
            "tags": self.tags[index],
            "mask": self.masks[index],
            "image_id": f"photo {index}",
            "original_size": torch.tensor([SIDE, SIDE]),
        }


class GivenBatches:
    """The same batches on any number of processes: each gets every so manieth image of a batch.

    Args:
        batches: of all processes together.
    """

    def __init__(self, batches: list[list[int]]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[list[int]]:
        processes, rank = world_size_and_rank()
        return iter([batch[rank::processes] for batch in self.batches])

    def __len__(self) -> int:
        return len(self.batches)


def loader(tags: Tensor, sizes: list[int]) -> DataLoader[Any]:
    """Batches of these sizes, one image after the other."""
    batches = [part.tolist() for part in torch.arange(len(tags)).split(sizes)]
    return DataLoader(dataset=Noise(tags), batch_sampler=GivenBatches(batches), collate_fn=collate)


def random_tags(images: int) -> Tensor:
    """One to `CLASSES` tags an image."""
    tags = (torch.rand(images, CLASSES, generator=torch.Generator().manual_seed(2)) < 0.4).float()
    tags[torch.arange(images), torch.arange(images) % CLASSES] = 1
    return tags


def tags_of_first_rank(images: int) -> Tensor:
    """Tags, so regions, on the first of two or three processes only."""
    tags = torch.zeros(images, CLASSES)
    tags[0::6] = random_tags(images)[0::6]
    return tags


def last_class_on_first_rank(images: int) -> Tensor:
    """The last class on the first of two or three processes only."""
    tags = random_tags(images)
    tags[:, -1] = 0
    tags[0::6, -1] = 1
    return tags
