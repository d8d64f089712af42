"""How the plots look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rca_lightning.errors import require_extra

INK, SEED, MEAN, BASELINE, REFERENCE = "#22272e", "#8fa3bf", "#1f4e8c", "#b5482f", "#2f7d5b"
SPLIT_COLOURS = ("#1f4e8c", "#b0741a", "#6b4c9a", "#2f7d5b")

_STYLE = {
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": INK,
    "axes.edgecolor": "#b8bec7",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": "#e6e9ee",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.dpi": 100,
    "savefig.dpi": 150,
}


def pyplot() -> Any:
    """matplotlib's pyplot, drawing to files.

    Raises:
        MissingExtraError: matplotlib is not installed; the message has the pip command.
    """
    require_extra("matplotlib", extra="notebook", needed_for="the plots of table.py").use("Agg")
    plots = require_extra("matplotlib.pyplot", extra="notebook", needed_for="the plots of table.py")
    plots.rcParams.update(_STYLE)
    return plots


def save(figure: Any, path: Path) -> str:
    """Write a picture and forget it; returns its name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight", facecolor="white")
    pyplot().close(figure)
    return path.name
