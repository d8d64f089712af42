"""Sections of the report that need no script: counts, classes, prototypes, what to look at, settings, skipped."""

from __future__ import annotations

import html
import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from rca_lightning.atlas.atlas import AtlasClass
from rca_lightning.atlas.page import Row
from rca_lightning.evaluation.comparison import protocol_in_words
from rca_lightning.evaluation.report import score_lines
from rca_lightning.io.progress import duration_in_words
from rca_lightning.report.curves import curves, histogram_figure
from rca_lightning.report.entries import Measured, encode_jpeg

LOOK_AT = 100
"""Most photographs that the page lists for a human to look at; the gallery's filter has all of them."""

MOST_SKIPPED = 500
"""Most skipped photographs that the page lists."""

_TILE = 96  # pixels of a region of the atlas in the page
_MOST_TILES = 1500  # of the whole atlas; with more, each prototype shows fewer
_BINS = 20


@dataclass
class Totals:
    """Counts over all entries, kept or not.

    Attributes:
        photographs: with a label.
        sampled: of the gallery, those that are there as a sample.
        quality: number of photographs in each of 20 bins.
        with_quality: number of photographs whose quality is known.
        summed_quality: of these.
        odd: number of photographs with a reason to look.
        skipped: image and reason, as many as are listed.
        num_skipped: all of them.
        tagged: photographs with the tag, by class.
        drawn: photographs on which it is drawn.
        area: sum of the shares it has on these.
    """

    photographs: int = 0
    sampled: int = 0
    quality: list[int] = field(default_factory=lambda: [0] * _BINS)
    with_quality: int = 0
    summed_quality: float = 0.0
    odd: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    num_skipped: int = 0
    tagged: dict[str, int] = field(default_factory=dict)
    drawn: dict[int, int] = field(default_factory=dict)
    area: dict[int, float] = field(default_factory=dict)

    def add(self, measured: Measured) -> None:
        """Counts a photograph with a label."""
        self.photographs += 1
        self.odd += bool(measured.reasons)
        if measured.quality is not None:
            self.quality[min(int(measured.quality * _BINS), _BINS - 1)] += 1
            self.with_quality += 1
            self.summed_quality += measured.quality
        for tag in measured.entry.tags:
            self.tagged[tag] = self.tagged.get(tag, 0) + 1
        for index, share in measured.shares.items():
            self.drawn[index] = self.drawn.get(index, 0) + 1
            self.area[index] = self.area.get(index, 0.0) + share

    def skip(self, image: str, reason: str) -> None:
        """Counts a photograph without a label."""
        self.num_skipped += 1
        if len(self.skipped) < MOST_SKIPPED:
            self.skipped.append((image, reason))


def class_colours(count: int) -> list[tuple[int, int, int]]:
    """Colours of the classes: neighbours have hues far apart, all are bright enough for both themes."""
    colours = []
    for index in range(count):
        hue = 2 * math.pi * (0.7 + index * 0.381966)  # the golden ratio: no two hues meet soon
        lightness, chroma = ((0.7, 0.15), (0.63, 0.17), (0.78, 0.13))[index % 3]
        colours.append(_oklch(lightness, chroma, hue))
    return colours


def _oklch(lightness: float, chroma: float, hue: float) -> tuple[int, int, int]:
    """Colour of 8 bits from OKLCH (Ottosson 2020, "A perceptual color space for image processing")."""
    a, b = chroma * math.cos(hue), chroma * math.sin(hue)
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    linear = (
        4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short,
        -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short,
        -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short,
    )
    red, green, blue = (round(255 * _gamma(min(max(value, 0.0), 1.0))) for value in linear)
    return red, green, blue


def _gamma(value: float) -> float:
    return 12.92 * value if value <= 0.0031308 else float(1.055 * value ** (1 / 2.4) - 0.055)


def summary_section(totals: Totals, run: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Counts of the run, and its warnings."""
    scores = run.get("scores") or {}
    seconds = sum((run.get("seconds") or {}).values())
    tiles = [("photographs", f"{totals.photographs:,}"), ("classes", f"{len(classes):,}")]
    if totals.with_quality:
        tiles.append(("mean quality", f"{totals.summed_quality / totals.with_quality:.2f}"))
    if scores.get("miou") is not None:
        interval = scores.get("miou_interval") or {}
        ends = [interval[end] for end in ("low", "high") if interval.get(end) is not None]
        within = f" ({' to '.join(f'{100 * end:.1f}' for end in ends)})" if ends else ""
        tiles.append((f"mIoU{within}", f"{100 * scores['miou']:.1f}"))
    tiles += [("to look at", f"{totals.odd:,}"), ("skipped", f"{totals.num_skipped:,}")]
    if seconds:
        tiles.append(("time", duration_in_words(seconds)))
    warnings = list(run.get("warnings") or ())
    notes = "".join(f"<li>{html.escape(str(warning))}</li>" for warning in warnings)
    box = f'<div class="note" role="note"><h3>Worth knowing</h3><ul>{notes}</ul></div>' if warnings else ""
    numbers = "".join(f"<div><dt>{html.escape(name)}</dt><dd>{value}</dd></div>" for name, value in tiles)
    return f'<dl class="numbers">{numbers}</dl>{box}'


def look_section(worst: Sequence[Measured], number: int) -> str:
    """The photographs that most need a human eye, with reasons; the script adds pictures.

    Args:
        worst: in the order of the list, each with a reason.
        number: how many there are in all.
    """
    if not worst:
        return '<p class="calm">Nothing stands out: every tag is drawn, and every mask is decided.</p>'
    items = "".join(
        f'<li><button type="button" class="look" data-id="{html.escape(one.entry.image_id)}">'
        f'<span class="thumb"></span><span class="what"><span class="id">{html.escape(one.entry.image_id)}</span>'
        f'<span class="why">{html.escape("; ".join(one.reasons))}</span></span></button></li>'
        for one in worst
    )
    note = f"<p>{len(worst):,} of {number:,}; the gallery shows all of them.</p>" if number > len(worst) else ""
    return f'{note}<ol class="looks">{items}</ol>'


def scores_section(totals: Totals, run: Mapping[str, Any]) -> str:
    """Curves of the run, and the spread of the quality."""
    drawn = curves(run.get("curves") or {})
    if totals.with_quality:
        drawn += histogram_figure("quality of the photographs", totals.quality, ends=("0 doubtful", "1 decided"))
    return f'<div class="curves">{drawn}</div>' if drawn else ""


def classes_section(totals: Totals, run: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Table of the classes: photographs, share of the photograph, and IoU where there were true masks."""
    scores = run.get("scores") or {}
    iou = scores.get("per_class_iou") or {}
    head = ["class", "tagged", "drawn", "mean share"] + (["IoU"] if iou else [])
    rows = []
    names: list[tuple[int | None, str]] = [(None, "background")] if "background" in iou else []
    said = "<br>".join(map(html.escape, _said_of(scores)))
    names += list(enumerate(classes))
    for index, name in names:
        drawn = totals.drawn.get(index, 0) if index is not None else 0
        cells = ["", "", ""]
        if index is not None:
            mean = f"{100 * totals.area[index] / drawn:.1f} %" if drawn else "-"
            cells = [f"{totals.tagged.get(name, 0):,}", f"{drawn:,}", mean]
        swatch = "" if index is None else f'<svg class="swatch c{index}" viewBox="0 0 8 8" aria-hidden="true">{_DOT}'
        swatch += "" if index is None else "</svg>"
        value = iou.get(name)
        bar = "-" if value is None or not math.isfinite(value) else _bar(value) + f"<span>{100 * value:.1f}</span>"
        cells += [f'<span class="iou">{bar}</span>'] if iou else []
        cell = "".join(f'<td class="n">{content}</td>' for content in cells)
        rows.append(f'<tr><th scope="row">{swatch}{html.escape(name)}</th>{cell}</tr>')
    titles = "".join(f'<th scope="col"{" class=n" if place else ""}>{title}</th>' for place, title in enumerate(head))
    return (
        f'<p>{said}</p><div class="scroll wide" tabindex="0" role="region" aria-label="Table of classes"><table>'
        f"<thead><tr>{titles}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def atlas_section(atlas: Sequence[AtlasClass]) -> Iterable[str]:
    """Prototypes of each class with the regions that they stand for, a class at a time."""
    tiles = sum(len(row.tiles) for drawn in atlas for row in drawn.rows)
    most = max(2, 6 * _MOST_TILES // max(tiles, 1)) if tiles > _MOST_TILES else 6
    for drawn in sorted(atlas, key=lambda drawn: drawn.value == 0):  # the background last
        if not drawn.rows:
            continue
        used = len(drawn.rows)
        note = f"<p>Shown: the {used} of most regions.</p>" if used < drawn.entry.prototypes else ""
        rows = "".join(_prototype(row, drawn.entry.name, most) for row in drawn.rows)
        yield (
            f"<details class=proto><summary><strong>{html.escape(drawn.entry.name)}</strong> "
            f"<span>{html.escape(drawn.subtitle)}</span></summary>{note}<div class=protos>{rows}</div></details>"
        )


def settings_section(run: Mapping[str, Any]) -> str:
    """Commands, settings and the time of each step."""
    command = run.get("command") or ()
    text = command if isinstance(command, str) else shlex.join(map(str, command))
    parts = []
    if text:
        parts.append(f'<h3>Command</h3><pre tabindex="0"><code>{html.escape(text)}</code></pre>')
    seconds = run.get("seconds") or {}
    if seconds:
        longest = max([*seconds.values(), 1e-9])
        rows = "".join(
            f'<tr><th scope="row">{html.escape(str(step))}</th><td class="iou">{_bar(value / longest)}'
            f"<span>{duration_in_words(value)}</span></td></tr>"
            for step, value in seconds.items()
        )
        parts.append(f"<h3>Time</h3><table>{rows}</table>")
    settings = "".join(
        f'<tr><th scope="row">{html.escape(str(name))}</th><td>{html.escape(_shown(value))}</td></tr>'
        for name, value in (run.get("settings") or {}).items()
    )
    if settings:
        parts.append(f"<h3>Settings</h3><table>{settings}</table>")
    columns = "".join(f"<div>{part}</div>" for part in parts)
    # Of the photographs that were scored, where there are some.
    protocol = (run.get("scores") or {}).get("protocol") or run.get("protocol") or {}
    entries = "".join(
        f'<tr><th scope="row">{html.escape(name)}</th><td>{html.escape(_in_words(value))}</td></tr>'
        for name, value in protocol.items()
    )
    if not entries:
        return columns
    return f'{columns}<div class="whole"><h3>What the masks rest on</h3><table>{entries}</table></div>'


def skipped_section(totals: Totals) -> str:
    """What was skipped and why."""
    if not totals.num_skipped:
        return '<p class="calm">Nothing was skipped.</p>'
    rows = "".join(
        f'<tr><th scope="row">{html.escape(image)}</th><td>{html.escape(reason)}</td></tr>'
        for image, reason in totals.skipped
    )
    listed = len(totals.skipped)
    note = f"<p>{listed:,} of {totals.num_skipped:,}.</p>" if listed < totals.num_skipped else ""
    return (
        f'{note}<div class="scroll wide" tabindex="0" role="region" aria-label="Skipped photographs"><table><thead><tr>'
        f'<th scope="col">photograph</th><th scope="col">why</th></tr></thead><tbody>{rows}</tbody></table></div>'
    )


def _said_of(scores: Mapping[str, Any]) -> Iterator[str]:
    """Sentences on a score: what it rests on, how sure it is, and where it comes from."""
    if isinstance(scores.get("protocol"), Mapping):
        yield f"scored with true masks: {protocol_in_words(scores['protocol'])}"
        yield from score_lines(scores)


_DOT = '<circle cx="4" cy="4" r="4"/>'


def _bar(share: float) -> str:
    width = max(0.0, min(1.0, share)) * 100
    return (
        '<svg class="meter" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect class="track" width="100" height="6"/><rect class="bar" width="{width:.1f}" height="6"/></svg>'
    )


def _prototype(row: Row, name: str, most: int) -> str:
    tiles = []
    for tile in row.tiles[:most]:
        left = f"<bdi dir=ltr>{html.escape(tile.left)}</bdi>"  # in a line that is cut at its beginning
        caption = f"<figcaption><span>{left}</span><span>{html.escape(tile.right)}</span></figcaption>"
        if tile.picture is None:
            tiles.append(f'<figure><div class="gone">cannot be read</div>{caption}</figure>')
            continue
        picture = Image.fromarray(tile.picture).resize((_TILE, _TILE), Image.Resampling.LANCZOS)
        words = f"Region of {tile.left} for {name}, {row.title}, cosine {tile.right}"
        tiles.append(
            f'<figure><img loading="lazy" width="{_TILE}" height="{_TILE}" alt="{html.escape(words)}" '
            f'src="data:image/jpeg;base64,{encode_jpeg(picture, quality=78)}">{caption}</figure>'
        )
    lines = "".join(f"<span>{html.escape(line)}</span>" for line in row.lines)
    return (
        f'<div class="row"><div class="about"><strong>{html.escape(row.title)}</strong>{_bar(row.share)}{lines}</div>'
        f'<div class="tiles">{"".join(tiles)}</div></div>'
    )


def _in_words(value: Any) -> str:
    """An entry of a protocol; of a group what is known."""
    if isinstance(value, Mapping):
        known = {name: part for name, part in value.items() if part is not None}
        return ", ".join(f"{name.replace('_', ' ')} {_in_words(part)}" for name, part in known.items()) or "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _shown(value)


def _shown(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "-"
    return "-" if value is None else str(value)
