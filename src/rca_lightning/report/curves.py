"""Curves and histograms as inline SVG, each with a table of its numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

Points = Sequence[tuple[float, float]]

_WIDTH, _HEIGHT = 340, 170
_LEFT, _RIGHT, _TOP, _BOTTOM = 44, 14, 12, 24
_MOST_POINTS = 400  # of a curve; more cannot be told apart at its width
_MOST_ROWS = 60  # of a table


def curve_figure(name: str, points: Points) -> str:
    """Draws a curve with its axes as SVG, and its numbers as a table that opens.

    Args:
        name: title, such as "train/loss".
        points: x and y; those that are not finite are left out.

    Returns:
        A `figure`, or an empty text without a point.
    """
    kept = [(float(x), float(y)) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    if not kept:
        return ""
    kept.sort()
    shown = thin(kept, _MOST_POINTS)
    xs, ys = nice_ticks(kept[0][0], kept[-1][0], 4), nice_ticks(min(y for _, y in kept), max(y for _, y in kept), 4)
    across = _scale(min(xs[0], kept[0][0]), max(xs[-1], kept[-1][0]), _LEFT, _WIDTH - _RIGHT)
    up = _scale(ys[0], ys[-1], _HEIGHT - _BOTTOM, _TOP)
    grid = "".join(
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{up(y):.1f}" y2="{up(y):.1f}"/>'
        f'<text class="tick" x="{_LEFT - 7}" y="{up(y) + 3.5:.1f}" text-anchor="end">{_number(y)}</text>'
        for y in ys
    ) + "".join(
        f'<text class="tick" x="{across(x):.1f}" y="{_HEIGHT - 7}" text-anchor="middle">{_number(x)}</text>'
        for x in xs
        if kept[0][0] <= x <= kept[-1][0] or len(kept) == 1
    )
    path = " ".join(f"{'L' if place else 'M'}{across(x):.1f} {up(y):.1f}" for place, (x, y) in enumerate(shown))
    last = shown[-1]
    area = f"{path} L{across(last[0]):.1f} {_HEIGHT - _BOTTOM} L{across(shown[0][0]):.1f} {_HEIGHT - _BOTTOM} Z"
    title = html.escape(name)
    words = f"{title}: {len(kept)} values, from {_number(kept[0][1])} to {_number(last[1])}"
    return (
        f'<figure class="curve"><figcaption><span>{title}</span><strong>{_number(last[1])}</strong></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{words}">{grid}'
        f'<path class="area" d="{area}"/><path class="line" d="{path}"/>'
        f'<circle class="dot" cx="{across(last[0]):.1f}" cy="{up(last[1]):.1f}" r="3.5"/></svg>'
        f"{_table(name, thin(kept, _MOST_ROWS), len(kept))}</figure>"
    )


def histogram_figure(title: str, values: Sequence[int], *, ends: tuple[str, str]) -> str:
    """Draws counts of equal bins as bars.

    Args:
        title: of the figure.
        values: count of each bin.
        ends: words at the left and the right end.
    """
    most = max([*values, 1])
    step = (_WIDTH - 8) / max(len(values), 1)
    bars = "".join(
        f'<rect class="bar" x="{4 + place * step + 1:.1f}" width="{step - 2:.1f}" rx="2" '
        f'y="{104 - 92 * value / most:.1f}" height="{92 * value / most:.1f}"><title>{value}</title></rect>'
        for place, value in enumerate(values)
    )
    words = f"{title}: {', '.join(map(str, values))}"
    return (
        f'<figure class="curve"><figcaption><span>{html.escape(title)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDTH} 124" role="img" aria-label="{html.escape(words)}">{bars}'
        f'<line class="grid" x1="4" x2="{_WIDTH - 4}" y1="104.5" y2="104.5"/>'
        f'<text class="tick" x="4" y="119">{html.escape(ends[0])}</text>'
        f'<text class="tick" x="{_WIDTH - 4}" y="119" text-anchor="end">{html.escape(ends[1])}</text></svg></figure>'
    )


def curves(series: Mapping[str, Points]) -> str:
    """Draws all curves of a run, those without a point left out."""
    return "".join(curve_figure(name, points) for name, points in series.items())


def thin(points: Points, most: int) -> list[tuple[float, float]]:
    """Picks at most so many points at equal steps, the first and the last among them.

    Example:
        >>> thin([(0, 5), (1, 6), (2, 7), (3, 8), (4, 9)], 3)
        [(0, 5), (2, 7), (4, 9)]
    """
    if len(points) <= most:
        return list(points)
    return [points[round(place * (len(points) - 1) / (most - 1))] for place in range(most)]


def nice_ticks(low: float, high: float, count: int) -> list[float]:
    """Finds round numbers from one at or below `low` to one at or above `high`, about `count` of them.

    Example:
        >>> nice_ticks(0.13, 0.97, 4)
        [0.0, 0.25, 0.5, 0.75, 1.0]
    """
    if high <= low:
        spread = abs(low) * 0.1 or 0.5
        low, high = low - spread, high + spread
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * 0.9999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = max(0, 2 - math.floor(math.log10(step)))
    return [round(place * step, digits) for place in range(first, last + 1)]


def _scale(low: float, high: float, start: float, end: float) -> Scale:
    return Scale(low, high if high > low else low + 1, start, end)


class Scale:
    """Maps numbers of an axis to places in a picture."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self.low, self.high, self.start, self.end = low, high, start, end

    def __call__(self, value: float) -> float:
        """Place of a number."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)


def _number(value: float) -> str:
    if value != 0 and (abs(value) < 1e-3 or abs(value) >= 1e6):
        return f"{value:.1e}"
    return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"


def _table(name: str, points: Points, number: int) -> str:
    rows = "".join(f"<tr><td>{_number(x)}</td><td>{_number(y)}</td></tr>" for x, y in points)
    note = f", {len(points)} of {number}" if len(points) < number else ""
    return (
        f'<details><summary>Numbers{note}</summary><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Numbers of {html.escape(name)}"><table><thead><tr><th scope="col">step</th>'
        f'<th scope="col">{html.escape(name)}</th></tr></thead><tbody>{rows}</tbody></table></div></details>'
    )
