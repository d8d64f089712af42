"""Writes `report.html`: one page that needs no other file and no network."""

from __future__ import annotations

import base64
import hashlib
import heapq
import html
import importlib.resources
import itertools
import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.errors import ArgumentError
from rca_lightning.io.atomic import output_errors, write_atomically
from rca_lightning.pseudo_labels.labels import check_share
from rca_lightning.report.entries import Measured, ReportEntry, measure, thumbnail
from rca_lightning.report.sections import (
    LOOK_AT,
    Totals,
    atlas_section,
    class_colours,
    classes_section,
    look_section,
    scores_section,
    settings_section,
    skipped_section,
    summary_section,
)

logger = logging.getLogger(__name__)

FILE_NAME = "report.html"
GALLERY = 5000
"""Most photographs in the gallery: of more, nine tenths are those of the lowest quality, and a tenth an even sample of
the others. It bounds memory and the size of the page."""

_SIDES = ((300, 480), (1000, 352), (2500, 240), (GALLERY, 184))  # up to so many photographs: longest side in pixels


def write_report(
    out: str | Path,
    entries: Iterable[ReportEntry],
    *,
    run: Mapping[str, Any],
    classes: Sequence[str],
    atlas: Sequence[AtlasClass] | None = None,
    threshold: float | None = None,
    gallery: int = GALLERY,
) -> Path:
    """Writes the page `report.html` into a folder, whole or not at all.

    Entries are read one at a time. A few kilobytes are kept of each in the gallery, and photographs are drawn as the
    page is written, so memory does not grow with what does not fit into the gallery. What cannot be read is a reason to
    look at the photograph, and no error.

    Args:
        out: folder of the page.
        entries: the photographs; one without a label was skipped, for its `reason`.
        run: content of `run.json`, as far as there is any: "command", "version", "settings", "seconds" by step,
            "skipped" (dicts of "image" and "reason"), "warnings", "scores" (see `Scores.as_dict`), "protocol" (see
            `make_protocol`) and "curves" by name, each a list of x and y.
        classes: names, in the order of the values of labels, without the background.
        atlas: prototypes of each class, as `draw_atlas` draws them.
        threshold: background threshold at which the page starts; None: "background_threshold" of the settings, or 0.5.
        gallery: most photographs in the gallery; of more, those of the lowest quality and, for a tenth of the places, a
            sample of the others, the same each time.

    Returns:
        Path of the page.

    Raises:
        ArgumentError: for a threshold outside `[0, 1]`, or a gallery of less than 1.
        OutputError: if the folder cannot be made or written to.
    """
    if threshold is None:
        given = (run.get("settings") or {}).get("background_threshold")
        threshold = 0.5 if given is None else float(given)
    check_share("threshold", threshold)
    if gallery < 1:
        raise ArgumentError("gallery", gallery, "give 1 or more")
    kept, totals = _read(entries, run, classes, threshold=threshold, gallery=gallery)
    page = Path(out) / FILE_NAME
    parts = _parts(kept, totals, run, classes, atlas or (), threshold)
    with output_errors("out", Path(out)):
        write_atomically(page, lambda file: file.writelines(part.encode() for part in parts))
    logger.info("report of %d photographs: %s", totals.photographs, page)
    return page


def _read(
    entries: Iterable[ReportEntry], run: Mapping[str, Any], classes: Sequence[str], *, threshold: float, gallery: int
) -> tuple[list[Measured], Totals]:
    """Measures all entries; returns those of the gallery, the lowest quality first, and the counts of all."""
    totals = Totals()
    lowest = _Smallest(gallery - gallery // 10)
    others = _Smallest(gallery // 10)
    order = itertools.count()
    for entry in entries:
        if entry.label is None:
            totals.skip(entry.image_id, entry.reason or "no mask")
            continue
        measured = measure(entry, classes, threshold=threshold)
        totals.add(measured)
        place = next(order)
        gone = lowest.push((_rank(measured), place), (place, measured))
        if gone is not None:
            others.push((_lot(gone[1].entry.image_id), gone[0]), gone)
    named = {image for image, _ in totals.skipped}
    for skipped in run.get("skipped") or ():
        if skipped["image"] not in named:
            totals.skip(skipped["image"], skipped["reason"])
    kept = sorted([*lowest.items, *others.items], key=lambda item: (_rank(item[1]), item[0]))
    totals.sampled = len(others.items)
    return [measured for _, measured in kept], totals


class _Smallest:
    """Keeps the photographs of the smallest keys, at most so many."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._heap: list[tuple[float, int, tuple[int, Measured]]] = []  # the greatest key on top, to give way

    @property
    def items(self) -> list[tuple[int, Measured]]:
        return [item for _, _, item in self._heap]

    def push(self, key: tuple[float, int], item: tuple[int, Measured]) -> tuple[int, Measured] | None:
        """Takes a photograph with its place; returns the one that gives way."""
        entry = (-key[0], -key[1], item)
        if len(self._heap) < self._most:
            heapq.heappush(self._heap, entry)
            return None
        return heapq.heappushpop(self._heap, entry)[2] if self._most else item


def _lot(image_id: str) -> float:
    """A number in [0, 1) that looks drawn by lot and is the same each time."""
    digest = hashlib.blake2b(image_id.encode("utf-8", "surrogatepass"), digest_size=7).digest()
    return int.from_bytes(digest, "big") / 2**56


def _rank(measured: Measured) -> float:
    return 1.0 if measured.quality is None else measured.quality


def _parts(
    kept: Sequence[Measured],
    totals: Totals,
    run: Mapping[str, Any],
    classes: Sequence[str],
    atlas: Sequence[AtlasClass],
    threshold: float,
) -> Iterator[str]:
    script, colours = _resource("report.js"), class_colours(len(classes))
    swatches = "".join(f".c{index}{{fill:rgb{colour}}}" for index, colour in enumerate(colours))
    style = _resource("report.css") + swatches
    policy = (
        f"default-src 'none'; img-src data: blob:; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = html.escape(str(run.get("name") or "Masks from tags"))
    yield (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        f"<title>{name}</title>\n<style>{style}</style>\n</head>\n<body>\n"
    )
    odd = [measured for measured in kept if measured.reasons]
    worst = sorted(odd, key=lambda measured: (-len(measured.reasons), _rank(measured)))[:LOOK_AT]
    scores = scores_section(totals, run)
    drawn_atlas = any(drawn.rows for drawn in atlas)
    sections = [("gallery", "Gallery"), ("look", "To look at"), ("classes", "Classes")]
    sections += [("curves", "Curves")] if scores else []
    sections += [("prototypes", "Prototypes")] if drawn_atlas else []
    sections += [("settings", "Settings"), ("skipped", "Skipped")]
    links = "".join(f'<li><a href="#{anchor}">{title}</a></li>' for anchor, title in sections)
    version = f"rca_lightning {html.escape(str(run['version']))}" if run.get("version") else "rca_lightning"
    yield (
        '<a class="skip" href="#gallery">Skip to the gallery</a>\n<header class="top"><div><h1>'
        f"{name}</h1><p>{totals.photographs:,} photographs, {len(classes):,} classes. Made by {version}.</p></div>"
        f'<nav aria-label="Sections"><ul>{links}</ul></nav></header>\n<main>\n'
    )
    yield summary_section(totals, run, classes)
    yield _gallery(kept, totals, classes, threshold)
    yield _section("look", "What most needs a human eye", look_section(worst, totals.odd))
    yield _section("classes", "Classes", classes_section(totals, run, classes))
    if scores:
        yield _section("curves", "Curves", scores)
    if drawn_atlas:
        yield (
            '<section id="prototypes" aria-labelledby="h-prototypes"><h2 id="h-prototypes">Prototypes</h2>'
            "<p>What the method has learned of each class: prototypes with the regions that are nearest to each, "
            "outlined, and the cosine between them.</p>"
        )
        yield from atlas_section(atlas)
        yield "</section>"
    yield _section("settings", "Settings and commands", f'<div class="settings">{settings_section(run)}</div>')
    yield _section("skipped", "Skipped, and why", skipped_section(totals))
    yield "</main>\n" + _DIALOG
    index = {
        "classes": list(classes),
        "colours": colours,
        "threshold": round(100 * threshold),
        "photos": [_indexed(measured, classes) for measured in kept],
    }
    yield f'<script type="application/json" id="index">{_json(index)}</script>\n'
    side = next(side for most, side in _SIDES if len(kept) <= most or most == GALLERY)
    for place, measured in enumerate(kept):  # before the script, which reads one when it comes into view
        small = thumbnail(measured.entry.photograph, long_side=side)
        planes = base64.b64encode(measured.planes).decode()
        yield f'<script type="text/plain" id="p{place}">{small or ""} {planes}</script>\n'
    yield f"<script>{script}</script>\n</body>\n</html>\n"


def _section(anchor: str, title: str, content: str) -> str:
    return f'<section id="{anchor}" aria-labelledby="h-{anchor}"><h2 id="h-{anchor}">{title}</h2>{content}</section>\n'


def _gallery(kept: Sequence[Measured], totals: Totals, classes: Sequence[str], threshold: float) -> str:
    used = {name for measured in kept for name in measured.entry.tags}
    used |= {classes[index] for measured in kept for index in measured.shares}
    shown = [(index, name) for index, name in enumerate(classes) if name in used]
    counts = {name: 0 for _, name in shown}
    for measured in kept:
        for name in {*measured.entry.tags, *(classes[index] for index in measured.shares)} & counts.keys():
            counts[name] += 1
    chips = "".join(
        f'<label class="chip"><input type="checkbox" name="class" value="{index}">'
        f'<svg class="swatch c{index}" viewBox="0 0 8 8" aria-hidden="true"><circle cx="4" cy="4" r="4"/></svg>'
        f"{html.escape(name)} <small>{counts[name]:,}</small></label>"
        for index, name in shown
    )
    note = ""
    if totals.photographs > len(kept):
        also = f" and {totals.sampled:,} others, drawn evenly" if totals.sampled else ""
        note = (
            f"<p>The {len(kept) - totals.sampled:,} photographs of the lowest quality{also}, of "
            f"{totals.photographs:,}.</p>"
        )
    return (
        '<section id="gallery" aria-labelledby="h-gallery"><h2 id="h-gallery">Gallery</h2>'
        "<noscript><p>The gallery needs JavaScript; the other sections do not.</p></noscript>"
        f'{note}<div class="bar" role="group" aria-label="View">{_view_control("view")}'
        f"{_threshold_control('threshold', threshold)}"
        '<label class="field">Sort <select id="sort"><option value="low">lowest quality first</option>'
        '<option value="high">highest quality first</option><option value="name">by name</option></select></label>'
        '<label class="field">Find <input type="search" id="search" placeholder="name" autocomplete="off" '
        'spellcheck="false"></label>'
        '<label class="field check"><input type="checkbox" id="odd"> only those to look at</label></div>'
        f'<fieldset class="chips"><legend>Classes</legend>{chips}</fieldset>'
        '<p id="count" role="status" aria-live="polite"></p>'
        '<ul id="photos" aria-label="Photographs. Arrow keys move, Enter opens."></ul>'
        '<button type="button" id="more" hidden></button></section>\n'
    )


def _view_control(anchor: str) -> str:
    return (
        f'<label class="slider" for="{anchor}"><span class="ends"><span>photograph</span><span>map</span>'
        f'<span>mask</span></span><input type="range" id="{anchor}" class="view" min="0" max="2" step="0.05" value="2" '
        'aria-label="From photograph over map to mask"></label>'
    )


def _threshold_control(anchor: str, threshold: float) -> str:
    return (
        f'<div class="slider"><label for="{anchor}">threshold <output for="{anchor}">as written</output></label>'
        f'<input type="range" id="{anchor}" class="threshold" min="0" max="100" step="1" '
        f'value="{round(100 * threshold)}" aria-label="Threshold of the background, in percent">'
        '<button type="button" class="written" disabled>masks as written</button></div>'
    )


_DIALOG = (
    '<dialog id="detail" aria-labelledby="d-name"><form method="dialog"><button class="close" '
    'aria-label="Close">&#215;</button></form><div class="stage"><button type="button" class="step" id="prev" '
    'aria-label="Previous photograph">&#8249;</button><div class="frame" id="d-frame"></div><button type="button" '
    'class="step" id="next" aria-label="Next photograph">&#8250;</button></div><div class="facts">'
    '<h2 id="d-name"></h2><p id="d-place"></p><div class="bar">'
    + _view_control("d-view")
    + _threshold_control("d-threshold", 0.5)
    + '</div><ul id="d-reasons"></ul><table id="d-classes"><thead><tr><th scope="col">class</th>'
    '<th scope="col">tag</th><th scope="col" class="n">share</th></tr></thead><tbody></tbody></table></div></dialog>\n'
)


def _indexed(measured: Measured, classes: Sequence[str]) -> dict[str, Any]:
    places = {name: index for index, name in enumerate(classes)}
    return {
        "i": measured.entry.image_id,
        "q": None if measured.quality is None else round(measured.quality, 4),
        "t": [places[tag] for tag in measured.entry.tags if tag in places],
        "d": {str(index): round(share, 4) for index, share in measured.shares.items()},
        "r": list(measured.reasons),
        "m": int(measured.has_map),
    }


def _json(value: Any) -> str:
    """JSON that can stand in a script element."""
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


def _resource(name: str) -> str:
    return importlib.resources.files("rca_lightning.report").joinpath(name).read_text(encoding="utf-8")


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
