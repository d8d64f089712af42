"""A line for each row: every seed as a dot, their mean as a bar across."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.spread import spread
from ablate.style import BASELINE, INK, MEAN, REFERENCE, SEED, pyplot, save

_INCHES_A_LINE = 0.235
_HEADING = 0.9  # lines that a heading of a group takes, above a gap of as much again


@dataclass(frozen=True)
class Panel:
    """One measure.

    Attributes:
        title: its name.
        values: by row and seed.
        baseline: title and value of a line to compare with; None without.
        reference: the same for the row that others vary.
        digits: behind the point.
    """

    title: str
    values: dict[str, dict[int, float]]
    baseline: tuple[str, float] | None = None
    reference: tuple[str, float] | None = None
    digits: int = 1


def draw_dots(groups: dict[str, list[tuple[str, str]]], panels: Sequence[Panel], path: Path) -> str:
    """Draw panels side by side with the rows below each other.

    Args:
        groups: name and title of the rows of each heading.
        panels: what is measured.
        path: the picture.

    Returns:
        The name of the picture.
    """
    plots = pyplot()
    places, headings, bottom = _places(groups)
    size = (2.1 + 3.3 * len(panels), 0.9 + _INCHES_A_LINE * bottom)
    figure, axes = plots.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for axis, panel in zip(axes[0], panels, strict=True):
        _draw_panel(axis, panel, places)
        axis.set_ylim(bottom - 0.4, -0.9)
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.grid(axis="x")
    titles = dict(row for rows in groups.values() for row in rows)
    axes[0][0].set_yticks([places[name] for name in places], [titles[name] for name in places])
    for heading, place in headings.items():
        axes[0][0].annotate(
            heading, (0, place), xycoords=("axes fraction", "data"), xytext=(-4, 0), textcoords="offset points",
            ha="right", va="center", weight="bold", color=INK, annotation_clip=False,
        )  # fmt: skip
    return save(figure, path)


def _places(groups: dict[str, list[tuple[str, str]]]) -> tuple[dict[str, float], dict[str, float], float]:
    """Height of each row and heading, and where the last one ends; the top is 0."""
    places: dict[str, float] = {}
    headings: dict[str, float] = {}
    height = 0.0
    for group, rows in groups.items():
        if group:
            headings[group] = height
            height += _HEADING
        for name, _ in rows:
            places[name] = height
            height += 1
        height += _HEADING
    return places, headings, height - _HEADING


def _draw_panel(axis: Any, panel: Panel, places: dict[str, float]) -> None:
    axis.set_title(panel.title, pad=16)
    for line, colour, style in ((panel.baseline, BASELINE, "--"), (panel.reference, REFERENCE, "-")):
        if line is not None:
            axis.axvline(line[1], color=colour, linestyle=style, linewidth=1.1, zorder=1)
    _label_lines(axis, panel)
    for name, place in places.items():
        values = list(panel.values.get(name, {}).values())
        found = spread(values)
        if found is None:
            continue
        several = found.count > 1
        if several:
            axis.plot([found.low, found.high], [place, place], color=SEED, linewidth=1.4, zorder=2)
            axis.scatter([found.mean], [place], s=110, marker="|", color=MEAN, zorder=4, linewidths=2.2)
        size, colour = (18, SEED) if several else (30, MEAN)
        axis.scatter(values, [place] * len(values), s=size, color=colour, zorder=3, linewidths=0)
        axis.annotate(
            f"{found.mean:.{panel.digits}f}", (1, place), xycoords=("axes fraction", "data"), xytext=(5, 0),
            textcoords="offset points", va="center", ha="left", fontsize=8, color=INK, annotation_clip=False,
        )  # fmt: skip
    axis.margins(x=0.08)


def _label_lines(axis: Any, panel: Panel) -> None:
    """Names over the lines; the left one ends at its line, the right one begins there, so they do not meet."""
    lines = [(*line, c) for line, c in ((panel.baseline, BASELINE), (panel.reference, REFERENCE)) if line is not None]
    lines.sort(key=lambda line: line[1])
    sides = ["center"] if len(lines) == 1 else ["right", "left"]
    for (title, value, colour), side in zip(lines, sides, strict=False):
        shift = {"center": 0, "right": 3, "left": -3}[side]
        axis.annotate(
            title, (value, 1), xycoords=("data", "axes fraction"), xytext=(shift, 2), textcoords="offset points",
            ha=side, va="bottom", fontsize=8, color=colour, annotation_clip=False,
        )  # fmt: skip
