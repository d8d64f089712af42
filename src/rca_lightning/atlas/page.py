"""Pages of the atlas: a picture for each class with a row for each prototype, and an HTML index of the classes."""

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
from rca_lightning.atlas.nearest import PrototypeRow
from rca_lightning.data.visualization import Pixels
from rca_lightning.rca.diagnostics import within_class_cosine

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
    """A crop with its caption.

    Attributes:
        picture: `(TILE, TILE, 3)`; `None` where the photograph cannot be read.
        left: left part of the caption; the beginning of a long one is cut off.
        right: right part of the caption, short.
    """

    picture: Pixels | None
    left: str
    right: str


@dataclass(frozen=True)
class Row:
    """A prototype in the picture of its class: title, lines of text, length of its bar in [0, 1], and crops."""

    title: str
    lines: tuple[str, ...]
    share: float
    tiles: tuple[Tile, ...]


def draw_page(title: str, subtitle: str, rows: Sequence[Row], columns: int, colour: tuple[int, ...] = _INK) -> Pixels:
    """Draws the page of a class.

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
_THUMBNAILS = 5

# Fields of `Diagnostics` that the atlas measures itself, from the memory as it is now.
_MEASURED_HERE = ("regions", "prototypes", "coverage", "mean_cosine")

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
    """A class in the index.

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
    """Renders the index as HTML; it needs no other file but the linked pictures.

    Args:
        entries: the classes.
        note: a sentence on what the atlas was made of.
        diagnostics: further columns: by class name, title to number; "-" where a class has none.

    Returns:
        A whole HTML document. Names, note and titles are escaped.

    Example:
        >>> page = index_page([IndexEntry("a<b", "001_a_b.png", 9, 4, 2, 0.8, 0.1)], note="step 7")
        >>> '<a href="001_a_b.png">a&lt;b</a>' in page
        True
    """
    measured = diagnostics or {}
    named = dict.fromkeys(title for numbers in measured.values() for title in numbers)
    further = [title for title in named if title not in _MEASURED_HERE]
    titles = ["regions", "images", "prototypes", "cosine to prototype", "cosine between prototypes", *further]
    head = "".join(f'<th class="n">{html.escape(title.replace("_", " "))}</th>' for title in titles)
    rows = []
    for entry in entries:
        own = measured.get(entry.name, {})
        numbers = (entry.regions, entry.images, entry.prototypes, entry.mean_cosine, entry.between)
        values = "".join(f'<td class="n">{_number(n)}</td>' for n in (*numbers, *(own.get(title) for title in further)))
        pictures = "".join(_thumbnail(picture) for picture in entry.thumbnails)
        name = html.escape(entry.name)
        name = name if entry.page is None else f'<a href="{quote(entry.page)}">{name}</a>'
        rows.append(f'<tr><td>{name}</td><td class="t">{pictures}</td>{values}</tr>')
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>Prototype atlas</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<h1>Prototype atlas</h1>\n<p>{html.escape(note)}</p>\n"
        f"<div><table>\n<tr><th>class</th><th>nearest region of the largest prototypes</th>{head}</tr>\n"
        + "\n".join(rows)
        + "\n</table></div>\n</body>\n</html>\n"
    )


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "-"
    return str(value) if isinstance(value, int) else f"{value:.2f}"


def _thumbnail(picture: Pixels) -> str:
    file = io.BytesIO()
    Image.fromarray(picture).resize((_THUMB, _THUMB), Image.Resampling.LANCZOS).save(file, format="JPEG", quality=80)
    return f'<img alt="" src="data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}">'


def class_entry(
    name: str, page: str | None, slots: Sequence[str], rows: Sequence[PrototypeRow], prototypes: Tensor, crops: Crops
) -> IndexEntry:
    """Summarizes a class for the index.

    Args:
        name: of the class.
        page: file name of its picture; `None` without one.
        slots: image id of each of its regions in the memory.
        rows: its prototypes, the one of most regions first.
        prototypes: `(K, D)`, the valid ones of this class.
        crops: the pictures.
    """
    nearest = [crops.get((row.label, row.nearest[0].slot)) for row in rows if row.nearest]
    weighted = sum(row.mean_cosine * row.regions for row in rows if row.regions)
    return IndexEntry(
        name=name,
        page=page,
        regions=len(slots),
        images=len(set(slots)),
        prototypes=len(rows),
        mean_cosine=weighted / len(slots) if rows and slots else math.nan,
        between=float(within_class_cosine(prototypes[None], prototypes.new_ones(1, len(prototypes)) > 0)),
        thumbnails=tuple(picture for picture in nearest[:_THUMBNAILS] if picture is not None),
    )


def subtitle(entry: IndexEntry, rows: Sequence[PrototypeRow]) -> str:
    """A line on what the memory holds of a class and how alike its prototypes are."""
    memory = f"{_count(entry.regions, 'region')} of {_count(entry.images, 'image')} in the memory"
    prototypes = _count(len(rows), "prototype")
    if not math.isnan(entry.between):
        prototypes += f" with a mean cosine of {entry.between:.2f} between them"
    unused = sum(not row.regions for row in rows)
    return f"{memory}, {prototypes}" + (f", {unused} of them nearest to no region" if unused else "")


def drawn_rows(rows: Sequence[PrototypeRow], crops: Crops) -> list[Row]:
    """The rows of the picture: the prototypes that are nearest to a region, the one of most regions first."""
    return [
        Row(
            title=f"prototype {row.number + 1}",
            lines=(
                _count(row.regions, "region"),
                f"of {_count(row.images, 'image')}",
                f"mean cosine {row.mean_cosine:.2f}",
            ),
            share=row.regions / rows[0].regions,
            tiles=tuple(
                Tile(crops.get((row.label, region.slot)), region.image_id, f"{region.cosine:.2f}")
                for region in row.nearest
            ),
        )
        for row in rows
        if row.regions
    ]


def page_name(name: str, mask_value: int) -> str:
    """File name of the picture of a class: its mask value, and the ASCII letters and digits of its name.

    Example:
        >>> page_name("../dining table", 11)
        '011_dining_table.png'
    """
    plain = re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_")[:40]
    return f"{mask_value:03d}_{plain}.png" if plain else f"{mask_value:03d}.png"


def _count(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"
