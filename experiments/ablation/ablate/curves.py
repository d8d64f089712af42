"""mIoU against a number that a group of rows varies, one small panel a group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ablate.spread import spread
from ablate.style import INK, SPLIT_COLOURS, pyplot, save
from ablate.summary import RowResults, Summary

_COLUMNS = 3


@dataclass(frozen=True)
class Curve:
    """Rows of a group by the number they set.

    Attributes:
        group: heading.
        key: the setting.
        points: its values in rising order with their rows.
        reference: the value that the row has which the others vary; None if that is not known.
    """

    group: str
    key: str
    points: list[tuple[float, RowResults]]
    reference: float | None


def curves(summary: Summary) -> list[Curve]:
    """The groups that vary one number, with the reference row as a point where its value is known."""
    found = []
    for group, rows in summary.groups().items():
        key = summary.varied(group)
        values = {} if key is None else {_number(row.value(key)): row for row in rows}
        if key is None or None in values:
            continue
        reference = None if summary.reference is None else _number(summary.reference.value(key))
        if reference is not None and summary.reference is not None:
            values.setdefault(reference, summary.reference)
        points = sorted((value, row) for value, row in values.items() if value is not None and row is not None)
        if len(points) > 1:
            found.append(Curve(group, key, points, reference))
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def draw_curves(summary: Summary, drawn: Sequence[Curve], path: Path) -> str:
    """Draw a panel for each curve, a line for each split, with the baseline dashed.

    Returns:
        The name of the picture.
    """
    plots = pyplot()
    columns = min(_COLUMNS, len(drawn))
    rows = -(-len(drawn) // columns)
    size = (3.2 * columns + 0.4, 2.5 * rows + 0.5)
    figure, axes = plots.subplots(rows, columns, figsize=size, squeeze=False, sharey=True, layout="constrained")
    for axis in axes.flat[len(drawn) :]:
        axis.set_visible(False)
    for axis, curve in zip(axes.flat, drawn, strict=False):
        for split, colour in zip(summary.splits, SPLIT_COLOURS, strict=False):
            _draw_line(axis, curve, split, colour)
            baseline = None if summary.baseline is None else spread(summary.baseline.best(split).values())
            if baseline is not None:
                axis.axhline(baseline.mean, color=colour, linestyle="--", linewidth=1, alpha=0.7, zorder=1)
        _label(axis, curve)
    for axis in axes[:, 0]:
        axis.set_ylabel("mIoU, %")
    handles = axes.flat[0].get_legend_handles_labels()
    if summary.baseline is not None:
        dashed = plots.Line2D([], [], color=INK, linestyle="--", linewidth=1)
        handles = ([*handles[0], dashed], [*handles[1], summary.baseline.row.title])
    figure.legend(*handles, loc="outside upper right", ncols=len(handles[0]), frameon=False, fontsize=9)
    return save(figure, path)


def _draw_line(axis: Any, curve: Curve, split: str, colour: str) -> None:
    means = []
    for place, (_, row) in enumerate(curve.points):
        values = list(row.best(split).values())
        found = spread(values)
        if found is not None:
            means.append((place, found.mean))
            if found.count > 1:
                axis.scatter([place] * len(values), values, s=11, color=colour, alpha=0.45, linewidths=0, zorder=2)
    places, heights = [place for place, _ in means], [mean for _, mean in means]
    axis.plot(places, heights, color=colour, marker="o", markersize=5, linewidth=1.6, label=split, zorder=3)


def _label(axis: Any, curve: Curve) -> None:
    """The values as they are, evenly spaced: they double or triple from one to the next, and may begin at 0."""
    axis.set_title(curve.group)
    axis.set_xticks(range(len(curve.points)), [f"{value:g}" for value, _ in curve.points])
    for tick, (value, _) in zip(axis.get_xticklabels(), curve.points, strict=True):
        tick.set_weight("bold" if value == curve.reference else "normal")
    axis.set_xlabel(curve.key)
    axis.margins(x=0.1, y=0.1)
    axis.tick_params(labelleft=True)
    axis.grid(axis="y")
