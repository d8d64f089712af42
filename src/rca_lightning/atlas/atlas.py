"""Prototype atlas of a trained module: nearest regions, crops, a picture for each class, and the index."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from rca_lightning.atlas.crops import Photographs, draw_crops
from rca_lightning.atlas.nearest import nearest_regions
from rca_lightning.atlas.page import (
    IndexEntry,
    Row,
    class_entry,
    draw_page,
    drawn_rows,
    index_page,
    page_name,
    subtitle,
)
from rca_lightning.clustering.cluster import kmeans
from rca_lightning.data.classes import voc_palette
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.features import FeatureCache
from rca_lightning.errors import ArgumentError
from rca_lightning.io.atomic import check_writable, output_errors, write_atomically
from rca_lightning.io.listing import first_few
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.memory_bank import RegionMemory

logger = logging.getLogger(__name__)

BACKGROUND = "background"
"""Name of the last queue of a memory that keeps the background."""


def make_atlas(
    module: RCAModule,
    memory: RegionMemory,
    images: TaggedImages,
    folder: str | Path,
    *,
    regions: int = 6,
    diagnostics: Mapping[str, Mapping[str, float | None]] | None = None,
    progress_bar: bool = False,
    cache: FeatureCache | None = None,
) -> Path:
    """Draws for every prototype the nearest regions of the memory, as crops of their photographs.

    Writes `index.html` and a picture a class, `001_aeroplane.png` and so on, numbered as mask values are; the
    background, where it has prototypes, is `000_background.png`. Each file is written whole or not at all. A module
    without prototypes (`aggregation=False`, or trained for less than its warm-up) gets k-means of its memory.

    The memory keeps no outlines: they are computed again, by the network as it is now on the whole photograph, at the
    mean scale of the augmentation of `images`, or behind a frozen backbone at the first of the module's scales.

    Args:
        module: trained; its mode and device stay as they are.
        memory: its regions.
        images: the training images; an image of the memory that is not among them is left out.
        folder: where to write; made if missing.
        regions: crops a prototype, from different images.
        diagnostics: further columns of the index: by class name (or "background"), title to number.
        progress_bar: whether to draw a bar instead of logging lines.
        cache: features of the images behind a frozen backbone, which then runs only for those that it does not hold.

    Returns:
        Path of the index.

    Raises:
        ArgumentError: if `regions` is below 1, the memory is empty, or `diagnostics` names another class.
        DataError: if no image of the memory is among `images`.
        OutputError: if the folder cannot be made or written to.
    """
    names = [*module.class_names, BACKGROUND]
    if strangers := sorted(set(diagnostics or {}) - set(names)):
        raise ArgumentError("diagnostics", strangers, f"give numbers of these classes: {first_few(names)}")
    _check_memory(memory)
    target = Path(folder)
    check_writable("folder", target)  # before the long work
    classes = draw_atlas(module, memory, images, regions=regions, progress_bar=progress_bar, cache=cache)
    for drawn in classes:
        if drawn.entry.page is not None:
            colour = tuple(voc_palette()[drawn.value].tolist())
            picture = Image.fromarray(draw_page(drawn.entry.name, drawn.subtitle, drawn.rows, regions, colour))
            with output_errors("folder", target):
                write_atomically(target / drawn.entry.page, partial(picture.save, format="PNG"))
    prototypes = sum(drawn.entry.prototypes for drawn in classes)
    text = index_page([drawn.entry for drawn in classes], note=_note(memory, prototypes), diagnostics=diagnostics)
    with output_errors("folder", target):
        write_atomically(target / "index.html", lambda file: file.write(text.encode()))
    logger.info("prototype atlas: %d prototypes: %s", prototypes, target / "index.html")
    return target / "index.html"


@dataclass(frozen=True)
class AtlasClass:
    """A class of the atlas.

    Attributes:
        value: in masks; 0 is the background.
        entry: its numbers.
        subtitle: a line on them.
        rows: its prototypes that stand for a region, with the crops of the nearest ones.
    """

    value: int
    entry: IndexEntry
    subtitle: str
    rows: tuple[Row, ...]


def draw_atlas(
    module: RCAModule,
    memory: RegionMemory,
    images: TaggedImages,
    *,
    regions: int = 6,
    prototypes: int | None = None,
    progress_bar: bool = False,
    cache: FeatureCache | None = None,
    each: Callable[[int, int], None] | None = None,
) -> list[AtlasClass]:
    """Draws the prototypes of each class with their nearest regions; `make_atlas` writes these to files.

    Args:
        module: see `make_atlas`, as for the other arguments.
        memory: see there.
        images: see there.
        regions: see there.
        prototypes: most that are drawn of a class, those of most regions; `None`: all.
        progress_bar: see there.
        cache: see there.
        each: called with the number of photographs that are done and of all.

    Returns:
        The classes in the order of their values in masks, the background first.
    """
    _check_memory(memory)
    names = [*module.class_names, BACKGROUND]
    frozen = module.is_frozen
    photographs = Photographs(
        images.whole() if frozen else images,
        scale=module.hparams["scales"][0] if frozen else 1.0,
        max_side=module.hparams["max_side"] if frozen else None,
        cache=cache if frozen else None,
    )
    photographs.check(memory)
    vectors, valid, labels = _prototypes(module, memory)
    rows = nearest_regions(memory, vectors, valid, labels, regions=regions, known=photographs)
    of_label = {
        label: sorted((row for row in rows if row.label == label), key=lambda row: (-row.regions, row.number))
        for label in range(memory.num_classes)
    }
    drawn = [row for own in of_label.values() for row in own[:prototypes]]
    crops = draw_crops(module, memory, photographs, drawn, progress_bar=progress_bar, each=each)
    by_mask_value = sorted((_mask_value(label, module), label) for label in range(memory.num_classes))
    classes = []
    for value, label in by_mask_value:  # the background, last in the memory, comes first
        own = of_label[label]
        page = page_name(names[label], value) if own else None
        slots = [memory.image_id(label, slot) for slot in memory.valid[label].nonzero()[:, 0].tolist()]
        entry = class_entry(names[label], page, slots, own, vectors[valid & (labels == label)], crops)
        classes.append(AtlasClass(value, entry, subtitle(entry, own), tuple(drawn_rows(own[:prototypes], crops))))
    return classes


def _check_memory(memory: RegionMemory) -> None:
    if not bool(memory.valid.any()):
        raise ArgumentError("memory", "empty", "train longer, or lower confidence, so that regions enter it")


def _prototypes(module: RCAModule, memory: RegionMemory) -> tuple[Tensor, Tensor, Tensor]:
    """Prototypes `(Q, D)`, which of them are valid `(Q,)`, and their class `(Q,)`, on the device of the memory."""
    reader = module.network.aggregation
    if reader is not None and bool(reader.valid.any()):
        device = memory.embeddings.device
        return reader.prototypes.to(device), reader.valid.to(device), reader.labels.to(device)
    logger.info("prototype atlas: the module has no prototypes, so the memory is clustered now")
    count = int(module.hparams["num_classes"])
    parts, labels = [], []
    for rows, key in ((range(count), "num_prototypes"), (range(count, memory.num_classes), "background_prototypes")):
        if len(rows):
            own = slice(rows.start, rows.stop)
            part = kmeans(memory.embeddings[own], int(module.hparams[key]), valid=memory.valid[own])
            parts.append(part)
            labels.append(torch.tensor(rows).repeat_interleave(part.valid.shape[1]))
    return (
        torch.cat([part.centroids.flatten(0, 1) for part in parts]),
        torch.cat([part.valid.flatten() for part in parts]),
        torch.cat(labels).to(memory.embeddings.device),
    )


def _mask_value(label: int, module: RCAModule) -> int:
    return (label + 1) % (int(module.hparams["num_classes"]) + 1)


def _note(memory: RegionMemory, prototypes: int) -> str:
    steps = memory.steps[memory.valid]
    return (
        f"{prototypes} prototypes and the {int(memory.valid.sum())} regions in the memory, which came at training "
        f"steps {int(steps.min())} to {int(steps.max())}. A prototype stands for the regions of its class to which no "
        "other is nearer; shown are its nearest ones, from different images. The outline is the region as the "
        "network sees it now."
    )
