"""What the atlas says of one class, as rows of its picture and as a line of the index."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from torch import Tensor

from rca_lightning.atlas.cropping import Crops
from rca_lightning.atlas.index import IndexEntry
from rca_lightning.atlas.nearest import PrototypeRow, RememberedRegion
from rca_lightning.atlas.page import Row, Tile
from rca_lightning.memory.bank import RegionMemory
from rca_lightning.memory.diversity import within_class_cosine

_THUMBNAILS = 5


@dataclass(frozen=True)
class ClassContents:
    """One class of the atlas.

    Attributes:
        name: of the class.
        page: file name of its picture; `None` for a class without a prototype.
        regions: remembered.
        images: different ones they come from.
        between: mean cosine between its prototypes; NaN with fewer than two.
        rows: its prototypes, the one of most regions first.
    """

    name: str
    page: str | None
    regions: int
    images: int
    between: float
    rows: tuple[PrototypeRow, ...]

    @classmethod
    def collect(
        cls, name: str, label: int, mask_value: int, memory: RegionMemory, rows: list[PrototypeRow], prototypes: Tensor
    ) -> ClassContents:
        """Gather a class.

        Args:
            name: of the class.
            label: its index in the memory.
            mask_value: its value in masks, which numbers the page.
            memory: the regions.
            rows: of all classes.
            prototypes: `(K, D)`, the valid ones of this class.
        """
        slots = memory.valid[label].nonzero()[:, 0].tolist()
        own = sorted((row for row in rows if row.label == label), key=lambda row: (-row.regions, row.number))
        valid = prototypes.new_ones(1, len(prototypes)) > 0
        return cls(
            name=name,
            page=page_name(name, mask_value) if own else None,
            regions=len(slots),
            images=len({memory.image_id(label, slot) for slot in slots}),
            between=float(within_class_cosine(prototypes[None], valid)),
            rows=tuple(own),
        )

    @property
    def subtitle(self) -> str:
        """A line on what the memory holds and how alike the prototypes are."""
        memory = f"{_count(self.regions, 'region')} of {_count(self.images, 'image')} in the memory"
        prototypes = _count(len(self.rows), "prototype")
        if not math.isnan(self.between):
            prototypes += f" with a mean cosine of {self.between:.2f} between them"
        unused = sum(not row.regions for row in self.rows)
        return f"{memory}, {prototypes}" + (f", {unused} of them nearest to no region" if unused else "")

    def drawn_rows(self, crops: Crops) -> list[Row]:
        """The rows of the picture: the prototypes that are nearest to a region."""
        used = [row for row in self.rows if row.regions]
        return [
            Row(
                title=f"prototype {row.number + 1}",
                lines=_lines(row),
                share=row.regions / used[0].regions,
                tiles=tuple(_tile(crops, row, region) for region in row.nearest),
            )
            for row in used
        ]

    def entry(self, crops: Crops) -> IndexEntry:
        """The line of the index."""
        nearest = [crops.get((row.label, row.nearest[0].slot)) for row in self.rows if row.nearest]
        weighted = sum(row.mean_cosine * row.regions for row in self.rows if row.regions)
        return IndexEntry(
            name=self.name,
            page=self.page,
            regions=self.regions,
            images=self.images,
            prototypes=len(self.rows),
            mean_cosine=weighted / self.regions if self.rows and self.regions else math.nan,
            between=self.between,
            thumbnails=tuple(picture for picture in nearest[:_THUMBNAILS] if picture is not None),
        )


def page_name(name: str, mask_value: int) -> str:
    """File name of a class's picture: its mask value, and of its name what every file system takes.

    Example:
        >>> page_name("../dining table", 11)
        '011_dining_table.png'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
    return f"{mask_value:03d}_{plain}.png" if plain else f"{mask_value:03d}.png"


def _lines(row: PrototypeRow) -> tuple[str, ...]:
    return (_count(row.regions, "region"), f"of {_count(row.images, 'image')}", f"mean cosine {row.mean_cosine:.2f}")


def _tile(crops: Crops, row: PrototypeRow, region: RememberedRegion) -> Tile:
    return Tile(crops.get((row.label, region.slot)), region.image_id, f"{region.cosine:.2f}")


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
