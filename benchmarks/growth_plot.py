"""The picture of growth.py: measured points, and the fitted model as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

_PANELS = {"step_seconds": "step, s", "kmeans_seconds": "k-means, s", "bank_mib": "memory, MiB"}
_VARIED = ("classes", "slots", "channels")


def plot(rows: Sequence[dict[str, Any]], models: dict[str, dict[str, float]], path: Path) -> None:
    """Draw a panel for each of step time, k-means time and size of the memory over classes, slots and channels.

    Where matplotlib is not installed it is said, and nothing drawn: numbers matter more than pictures.

    Args:
        rows: of growth.py.
        models: coefficients by column; the size of the memory needs none, it is what it is.
        path: of the PNG.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        print(f"{path} is left out: matplotlib is not installed; pip install 'rca-lightning[notebook]' brings it")
        return
    figure = Figure(figsize=(8, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(_PANELS), len(_VARIED), sharex="col", sharey="row")
    for line, (of, label) in zip(panels, _PANELS.items(), strict=True):
        line[0].set_ylabel(label)
        for panel, varied in zip(line, _VARIED, strict=True):
            own = [row for row in rows if row["varied"] == varied]
            over = [row[varied] for row in own]
            panel.loglog(over, [modelled(row, of, models) for row in own], color="tab:gray", label="model")
            panel.loglog(over, [row[of] for row in own], "o", color="tab:blue", label="measured")
            panel.grid(visible=True, which="major", linewidth=0.3)
    for panel, varied in zip(panels[-1], _VARIED, strict=True):
        panel.set_xlabel(varied)
        panel.minorticks_off()
        over = sorted({row[varied] for row in rows if row["varied"] == varied})
        panel.set_xticks(over, labels=[str(value) for value in over])
    panels[0, 0].legend(frameon=False)
    figure.savefig(path, dpi=80, metadata={"Software": None})


def modelled(row: dict[str, Any], of: str, models: dict[str, dict[str, float]]) -> float:
    """What the model of a column says of a row."""
    if of not in models:
        return float(row[of])
    terms = {name: value for name, value in models[of].items() if name != "median_error"}
    return sum(value * (1.0 if name == "constant" else float(row[name])) for name, value in terms.items())
