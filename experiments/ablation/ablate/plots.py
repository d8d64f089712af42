"""The plots beside the table."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from ablate.curves import curves, draw_curves
from ablate.dots import Panel, draw_dots
from ablate.spread import spread
from ablate.summary import RowResults, Summary


def draw(summary: Summary, out: Path) -> list[str]:
    """Draw what the results have: mIoU, curves, prototypes, cost.

    Args:
        summary: the results.
        out: the folder of the pictures.

    Returns:
        Names of the pictures.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    scores = [_panel(summary, f"{split} mIoU, %", partial(_best, split)) for split in summary.splits]
    pictures = [draw_dots(_lines(summary, scores), scores, out / "miou.png")]
    if drawn := curves(summary):
        pictures.append(draw_curves(summary, drawn, out / "curves.png"))
    for panels, name in ((_prototypes(summary), "prototypes.png"), ([_cost(summary)], "cost.png")):
        if lines := _lines(summary, panels, only_trained=True):
            pictures.append(draw_dots(lines, panels, out / name))
    return pictures


def _prototypes(summary: Summary) -> list[Panel]:
    coverage = _panel(summary, "coverage of the regions", _coverage, digits=2)
    cosine = _panel(summary, "cosine between prototypes", RowResults.cosine, digits=2)
    return [panel for panel in (coverage, cosine) if any(panel.values.values())]


def _coverage(row: RowResults) -> dict[int, float]:
    return row.diagnostic("coverage")


def _cost(summary: Summary) -> Panel:
    """Processor time of the training in times that of the baseline, in minutes without one."""
    baseline = summary.baseline
    known = None if baseline is None else spread(baseline.cpu_minutes().values())
    if baseline is None or known is None:
        return _panel(summary, "processor time of the training, min", RowResults.cpu_minutes)

    def times(row: RowResults) -> dict[int, float]:
        return {seed: minutes / known.mean for seed, minutes in row.cpu_minutes().items()}

    return _panel(summary, f"processor time of the training, {baseline.row.title} = 1", times, digits=2)


def _best(split: str, row: RowResults) -> dict[int, float]:
    return row.best(split)


def _panel(summary: Summary, title: str, measure: Callable[[RowResults], dict[int, float]], digits: int = 1) -> Panel:
    def line(results: RowResults | None) -> tuple[str, float] | None:
        found = None if results is None else spread(measure(results).values())
        return None if results is None or found is None else (results.row.title, found.mean)

    values = {name: measure(results) for name, results in summary.rows.items()}
    reference = summary.reference if summary.reference is not summary.baseline else None
    return Panel(title, values, line(summary.baseline), line(reference), digits)


def _lines(summary: Summary, panels: list[Panel], *, only_trained: bool = False) -> dict[str, list[tuple[str, str]]]:
    """Rows with a value in some panel, by group."""
    found: dict[str, list[tuple[str, str]]] = {}
    for group, rows in summary.groups().items():
        shown = [r.row for r in rows if any(panel.values[r.row.name] for panel in panels)]
        shown = [row for row in shown if row.fit is None or not only_trained]
        if shown:
            found[group] = [(row.name, row.title) for row in shown]
    return found
