"""The pages of the atlas: a picture a class, a row a prototype, and an index of all classes."""

from __future__ import annotations

import base64
import html
import io
import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from urllib.parse import quote

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from rca_lightning.atlas.crops import TILE, Crops
from rca_lightning.atlas.nearest import PrototypeRow, RememberedRegion
from rca_lightning.data.visualization import Pixels
from rca_lightning.rca.diagnostics import within_class_cosine
from rca_lightning.rca.memory_bank import RegionMemory

_GAP = 10
_MARGIN = 20
_LABEL = 132  # width of the column that says what a row is
_HEAD = 76
_CAPTION = 18
_ROW = TILE + _CAPTION + 12
_TALL = 20  # more rows than these stand in two columns
_INK, _FADED, _RULE, _PAPER, _MISSING = (24, 24, 27), (105, 105, 115), (224, 224, 228), (255, 255, 255), (244, 244, 246)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class Tile:
    """One crop with what stands under it.

    Attributes:
        picture: `(TILE, TILE, 3)`; `None` where the photograph cannot be read.
        left: shortened where it is too long, its end is kept.
        right: short.
    """

    picture: Pixels | None
    left: str
    right: str


@dataclass(frozen=True)
class Row:
    """One prototype.

    Attributes:
        title: its name.
        lines: what is said of it.
        share: length of its bar, in [0, 1].
        tiles: its crops.
    """

    title: str
    lines: tuple[str, ...]
    share: float
    tiles: tuple[Tile, ...]


def draw_page(title: str, subtitle: str, rows: Sequence[Row], columns: int, colour: tuple[int, ...] = _INK) -> Pixels:
    """Draw the page of a class.

    Args:
        title: name of the class.
        subtitle: a line under it.
        rows: the prototypes, from top to bottom, then in a second column where they are many.
        columns: places for crops in a row.
        colour: of the bars.

    Returns:
        The picture; its size depends on the number of rows and columns only.
    """
    blocks = 2 if len(rows) > _TALL else 1
    depth = -(-len(rows) // blocks)
    width = _LABEL + columns * (TILE + _GAP)
    canvas = Image.new("RGB", (_MARGIN + blocks * (width + _MARGIN), _HEAD + depth * _ROW + _MARGIN // 2), _PAPER)
    pen = ImageDraw.Draw(canvas)
    limit = canvas.width - 2 * _MARGIN - _GAP
    pen.text((_MARGIN, 16), _fitted(pen, title, _font(24), limit), fill=_INK, font=_font(24))
    pen.text((_MARGIN, 48), _fitted(pen, subtitle, _font(13), limit, end=False), fill=_FADED, font=_font(13))
    for index, row in enumerate(rows):
        left, top = _MARGIN + (index // depth) * (width + _MARGIN), _HEAD + (index % depth) * _ROW
        pen.line((left, top, left + width - _GAP - 1, top), fill=_RULE)
        _draw_label(pen, row, left, top + 10, colour)
        for place, tile in enumerate(row.tiles):
            _draw_tile(canvas, pen, tile, left + _LABEL + place * (TILE + _GAP), top + 10)
    return np.asarray(canvas)


def _draw_label(pen: ImageDraw.ImageDraw, row: Row, left: int, top: int, colour: tuple[int, ...]) -> None:
    pen.text((left, top), row.title, fill=_INK, font=_font(16))
    full = _LABEL - 3 * _GAP
    pen.rectangle((left, top + 27, left + full, top + 32), fill=_RULE)
    pen.rectangle((left, top + 27, left + round(full * row.share), top + 32), fill=colour)
    for number, line in enumerate(row.lines):
        pen.text((left, top + 42 + 19 * number), line, fill=_FADED, font=_font(13))


def _draw_tile(canvas: Image.Image, pen: ImageDraw.ImageDraw, tile: Tile, left: int, top: int) -> None:
    if tile.picture is None:
        pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), fill=_MISSING, outline=_RULE)
        pen.text((left + 12, top + TILE // 2 - 8), "cannot be read", fill=_FADED, font=_font(13))
    else:
        canvas.paste(Image.fromarray(tile.picture), (left, top))
    font = _font(12)
    room = TILE - 8 - pen.textlength(tile.right, font=font)
    pen.text((left, top + TILE + 3), _fitted(pen, tile.left, font, room), fill=_FADED, font=font)
    pen.text((left + TILE - pen.textlength(tile.right, font=font), top + TILE + 3), tile.right, fill=_INK, font=font)


def _fitted(pen: ImageDraw.ImageDraw, text: str, font: Font, room: float, *, end: bool = True) -> str:
    """The text, or as much of its end (or start) as there is room for."""
    if pen.textlength(text, font=font) <= room:
        return text
    shortened = [f"...{text[len(text) - kept :]}" if end else f"{text[:kept]}..." for kept in range(len(text))]
    return shortened[max(bisect_right(shortened, room, key=lambda short: pen.textlength(short, font=font)) - 1, 0)]


@lru_cache
def _font(size: int) -> Font:
    return ImageFont.load_default(size=size)


_THUMB = 72

# What the atlas counts itself, from the memory as it is now; the names are those of `Diagnostics`.
_SHOWN_ANYWAY = ("regions", "prototypes", "coverage", "mean_cosine")

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 88rem; padding: 0 1rem; color: #18181b;
  background: #fff; }
h1 { font-size: 1.5rem; margin-bottom: .25rem; }
p { color: #55555f; margin-top: 0; max-width: 50rem; }
div { overflow-x: auto; }
table { border-collapse: collapse; }
th { text-align: left; font-weight: 600; color: #55555f; vertical-align: bottom; }
th, td { padding: .35rem .9rem .35rem 0; border-bottom: 1px solid #e0e0e4; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; }
td.t { white-space: nowrap; }
img { width: 56px; height: 56px; margin-right: 3px; vertical-align: middle; }
a { color: #1d4ed8; }
"""


@dataclass(frozen=True)
class IndexEntry:
    """What the index says of a class.

    Attributes:
        name: of the class.
        page: file name of its picture, in the folder of the index; `None` without one.
        regions: remembered.
        images: different ones they come from.
        prototypes: how many.
        mean_cosine: of the regions to their prototype; NaN where there is none.
        between: mean cosine between the prototypes; NaN with fewer than two.
        thumbnails: one picture of each of the largest prototypes.
    """

    name: str
    page: str | None
    regions: int
    images: int
    prototypes: int
    mean_cosine: float
    between: float
    thumbnails: tuple[Pixels, ...] = ()


def index_page(
    entries: Sequence[IndexEntry], *, note: str, diagnostics: Mapping[str, Mapping[str, float | None]] | None = None
) -> str:
    """The HTML of the index; it needs no other file but the linked pictures.

    Args:
        entries: the classes.
        note: a sentence on what the atlas was made of.
        diagnostics: further columns: by class name, title to number. What a class has none of is shown as "-".

    Returns:
        A whole HTML document. Names, note and titles are escaped.

    Example:
        >>> page = index_page([IndexEntry("a<b", "001_a_b.png", 9, 4, 2, 0.8, 0.1)], note="step 7")
        >>> '<a href="001_a_b.png">a&lt;b</a>' in page
        True
    """
    measured = diagnostics or {}
    named = dict.fromkeys(title for numbers in measured.values() for title in numbers)
    further = [title for title in named if title not in _SHOWN_ANYWAY]
    titles = ["regions", "images", "prototypes", "cosine to prototype", "cosine between prototypes", *further]
    head = "".join(f'<th class="n">{html.escape(title.replace("_", " "))}</th>' for title in titles)
    rows = []
    for entry in entries:
        own = measured.get(entry.name, {})
        numbers = (entry.regions, entry.images, entry.prototypes, entry.mean_cosine, entry.between)
        values = "".join(f'<td class="n">{_number(n)}</td>' for n in (*numbers, *(own.get(title) for title in further)))
        pictures = "".join(_thumbnail(picture) for picture in entry.thumbnails)
        rows.append(f'<tr><td>{_name(entry)}</td><td class="t">{pictures}</td>{values}</tr>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Prototype atlas</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Prototype atlas</h1>\n<p>{html.escape(note)}</p>\n"
        f"<div><table>\n<tr><th>class</th><th>nearest region of the largest prototypes</th>{head}</tr>\n"
        + "\n".join(rows)
        + "\n</table></div>\n</body>\n</html>\n"
    )


def _name(entry: IndexEntry) -> str:
    name = html.escape(entry.name)
    return name if entry.page is None else f'<a href="{quote(entry.page)}">{name}</a>'


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _thumbnail(picture: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).resize((_THUMB, _THUMB), Image.Resampling.LANCZOS).save(file, format="JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


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
