"""Finds classes that the masks of a split never show: their scores, and the losses of a training, say nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torchmetrics import Metric

from rca_lightning.constants import IGNORE_INDEX
from rca_lightning.data.dataset import load_mask
from rca_lightning.data.records import Record
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.io.listing import first_few

_MASKS_READ = 200  # of one class, until it counts as one that masks never show
_NAMED = 5


@dataclass(kw_only=True)
class MaskClassCounts:
    """In how many masks each class occurs, and in how many where it should.

    Attributes:
        masks: how many were looked at.
        drawn: masks with a pixel of the class, of each of the `L` classes.
        tagged: images tagged with the class, of each class.
        both: images tagged with the class whose mask has a pixel of it, of each class.
        void: masks with a void pixel (255).
        sampled: whether masks were looked at only until each tagged class was found.
    """

    masks: int
    drawn: Sequence[int]
    tagged: Sequence[int]
    both: Sequence[int]
    void: int
    sampled: bool = False

    def warnings(self, class_names: Sequence[str]) -> list[str]:
        """At most one sentence for each fault, with the classes and a remedy."""
        if self.void and not any(self.drawn):
            values = "1" if len(class_names) == 1 else "1, 2, ..."
            remedy = f"the masks hold only 0 and {IGNORE_INDEX}, which is void: draw the classes as {values}"
        else:
            remedy = "compare the values of the masks, 1, 2, ..., with the order of the class names"
        counts = list(zip(class_names, self.drawn, self.tagged, self.both, strict=True))
        nowhere = [name for name, drawn, tagged, _ in counts if tagged and not drawn]
        elsewhere = [name for name, drawn, tagged, both in counts if tagged and drawn and not both]
        absent = [name for name, drawn, tagged, _ in counts if not tagged and not drawn]
        absence = "in no tags, so it is not learned" if self.sampled else "in no mask and no tags, so it has no score"
        faults = (
            (nowhere, f"in the tags of images, but in none of {self.masks} masks; {remedy}"),
            (elsewhere, f"in the tags of images, but only in masks of others; {remedy}"),
            (absent, absence),
        )
        return [f"class {first_few(names, limit=_NAMED)}: {fault}" for names, fault in faults if names]


class MaskClasses(Metric):
    """Counts the masks and tags of each class over a whole split; exact over ranks.

    Args:
        num_classes: foreground classes `L`.
        over_ranks: whether `compute` gathers the counts of all ranks, each of which must call it then.

    Example:
        >>> metric = MaskClasses(num_classes=1)
        >>> metric.update(torch.tensor([[0, 255]]), torch.tensor([1.0]))
        >>> counts = metric.compute()
        >>> counts.tagged, counts.drawn, counts.void
        ([1], [0], 1)
    """

    full_state_update = False
    counts: Tensor
    masks: Tensor

    def __init__(self, num_classes: int, *, over_ranks: bool = True) -> None:
        super().__init__(sync_on_compute=over_ranks)
        self.num_classes = num_classes
        self.add_state("counts", torch.zeros(3, num_classes, dtype=torch.long), dist_reduce_fx="sum")
        self.add_state("masks", torch.zeros(2, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, mask: Tensor, tags: Tensor) -> None:
        """Counts one image.

        Args:
            mask: `(H, W)` integer: 0 background, 1..L, 255 void.
            tags: `(L,)`; above 0 for the classes of the image.
        """
        pixels = torch.bincount(mask.flatten().long(), minlength=max(IGNORE_INDEX, self.num_classes) + 1)
        drawn, tagged = pixels[1 : self.num_classes + 1] > 0, tags > 0
        self.counts += torch.stack([drawn, tagged, drawn & tagged])
        self.masks += torch.stack([torch.ones_like(pixels[0]), (pixels[IGNORE_INDEX] > 0).long()])

    def compute(self) -> MaskClassCounts:
        """Counts of all images so far."""
        drawn, tagged, both = self.counts.tolist()
        masks, void = self.masks.tolist()
        return MaskClassCounts(masks=masks, drawn=drawn, tagged=tagged, both=both, void=void)


def sample_mask_classes(records: Iterable[Record], num_classes: int) -> MaskClassCounts:
    """Counts masks and tags of training images, reading masks only until each tagged class was found in one.

    Sound data take a few masks a class. A class that is in none of 200 masks of images tagged with it counts as never
    drawn. Masks that cannot be read are passed over.

    Args:
        records: of the images, with their masks and tags.
        num_classes: foreground classes `L`.
    """
    metric = MaskClasses(num_classes, over_ranks=False)
    tagged, looked_at, found = Counter[int](), Counter[int](), set[int]()
    for record in records:
        tags = record.tags or ()
        tagged.update(tags)
        if all(index in found or looked_at[index] == _MASKS_READ for index in tags):
            continue
        try:
            mask = load_mask(record, num_classes=num_classes)
        except (DataError, DatasetNotFoundError):
            continue
        if mask is not None:
            looked_at.update(tags)
            present = torch.zeros(num_classes).index_fill(0, torch.tensor(tags), 1)
            metric.update(torch.from_numpy(mask), present)
            found.update(torch.nonzero(metric.counts[2])[:, 0].tolist())
    return replace(metric.compute(), tagged=[tagged[index] for index in range(num_classes)], sampled=True)
