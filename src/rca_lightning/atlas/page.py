"""The picture of one class: a row a prototype, its nearest regions side by side."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from rca_lightning.visualization import Pixels

TILE = 144
"""Side of a crop in pixels."""

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
