"""The crops of many remembered regions, each photograph read and seen by the network once."""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence

from rich.progress import track

from rca_lightning.atlas.crops import draw_crop
from rca_lightning.atlas.nearest import PrototypeRow
from rca_lightning.atlas.outlines import ImageRegions
from rca_lightning.atlas.page import TILE
from rca_lightning.atlas.photographs import Photographs
from rca_lightning.errors import DataError, DatasetNotFoundError
from rca_lightning.memory.bank import RegionMemory
from rca_lightning.module import RCAModule
from rca_lightning.visualization import Pixels, denormalise

logger = logging.getLogger(__name__)

Slot = tuple[int, int]
"""Class and slot of a region in the memory."""

Crops = dict[Slot, Pixels]
"""A square picture of each region; regions of photographs that cannot be read are not in it."""

_SECONDS = 30.0  # between two lines of progress


def draw_crops(
    module: RCAModule,
    memory: RegionMemory,
    photographs: Photographs,
    rows: Sequence[PrototypeRow],
    *,
    progress_bar: bool,
) -> Crops:
    """Draw the nearest regions of all rows.

    Args:
        module: whose network outlines the regions; its mode stays as it is.
        memory: the regions.
        photographs: where their images are.
        rows: the regions to draw; their images are among `photographs`.
        progress_bar: whether to draw a bar; else progress comes as lines in the log.

    Returns:
        The crops. A photograph that is gone or damaged is logged and has none.
    """
    wanted: dict[str, list[Slot]] = defaultdict(list)
    for row in rows:
        for region in row.nearest:
            wanted[region.image_id].append((row.label, region.slot))
    crops: Crops = {}
    modes = {child: child.training for child in module.modules()}
    module.eval()
    try:
        for image_id in _with_progress(wanted, bar=progress_bar):
            crops.update(_draw(module, memory, photographs, image_id, wanted[image_id]))
    finally:
        for child, training in modes.items():
            child.training = training
    return crops


def _draw(
    module: RCAModule, memory: RegionMemory, photographs: Photographs, image_id: str, slots: Sequence[Slot]
) -> Crops:
    try:
        sample = photographs.read(image_id)
    except (DataError, DatasetNotFoundError) as error:
        logger.warning("prototype atlas: %s", error)
        return {}
    found = ImageRegions(
        module.network,
        sample["image"],
        sample["tags"],
        long_side=photographs.long_side,
        region_threshold=module.hparams["region_threshold"],
        region_rule=module.hparams["region_rule"],
        region_map=module.hparams["region_map"],
        background_threshold=module.hparams["background_threshold"],
    )
    picture = denormalise(sample["image"])
    crops: Crops = {}
    for label, slot in slots:
        background = label == module.hparams["num_classes"]
        mask = found.of_background(memory.embeddings[label, slot]) if background else found.of_class(label)
        crops[label, slot] = draw_crop(picture, mask, TILE)
    return crops


def _with_progress(image_ids: Collection[str], *, bar: bool) -> Iterator[str]:
    if bar:
        yield from track(image_ids, description="prototype atlas", total=len(image_ids))
        return
    last = time.monotonic()
    for done, image_id in enumerate(image_ids):
        if time.monotonic() - last >= _SECONDS:
            last = time.monotonic()
            logger.info("prototype atlas: image %d of %d", done, len(image_ids))
        yield image_id
