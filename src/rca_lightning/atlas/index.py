"""`index.html`: all classes at a glance, each linked to its page."""

from __future__ import annotations

import base64
import html
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import quote

from PIL import Image

from rca_lightning.visualization import Pixels

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
