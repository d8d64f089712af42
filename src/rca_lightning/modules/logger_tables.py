"""Tables of a run for its loggers: scores by class, the curve of thresholds, prototypes by class."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import lightning as L
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger

from rca_lightning.arguments import check_arguments
from rca_lightning.evaluation.report import Scores, TagsUsed, metric_name

Cell: TypeAlias = str | float | int | None

_EVERY = 0.05  # of the thresholds that are scored, those that a table shows


def log_table(trainer: L.Trainer, name: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> None:
    """Gives a table to the loggers of a run: TensorBoard shows it as text, Weights & Biases as a table to plot from.

    Args:
        trainer: of the run; only its first rank logs, and nothing in a sanity check.
        name: of the table, such as `val/scores_by_class`.
        columns: their names.
        rows: of as many cells each; None for what has no value.
    """
    if not trainer.is_global_zero or trainer.sanity_checking:
        return
    for destination in trainer.loggers:
        if isinstance(destination, TensorBoardLogger):
            destination.experiment.add_text(name, _markdown(columns, rows), trainer.global_step)
        elif isinstance(destination, WandbLogger):
            destination.log_table(name, columns=list(columns), data=[list(row) for row in rows])


@check_arguments
def log_scores(trainer: L.Trainer, scores: Scores, class_names: Sequence[str], tags: TagsUsed) -> None:
    """Logs IoU, precision and recall of each class and, of seeds, the mIoU by background threshold, in percent.

    The names say whose tags were used, as those of the metrics do; see `metric_name`.

    Args:
        trainer: of the run.
        scores: of a validation or a test.
        class_names: of the `L` classes, without the background.
        tags: whose tags were used.
    """
    prefix = "test" if trainer.state.fn == "test" else "val"
    values = zip(
        ["background", *class_names],
        *(getattr(scores, name).tolist() for name in ("iou", "precision", "recall")),
        strict=True,
    )
    rows = [[label, *map(_percent, of_class)] for label, *of_class in values]
    log_table(trainer, metric_name(prefix, "scores_by_class", tags), ("class", "IoU", "precision", "recall"), rows)
    shown = [
        [threshold, _percent(miou)]
        for threshold, miou in scores.curve.items()
        if abs(threshold / _EVERY - round(threshold / _EVERY)) < 1e-6
    ]
    if shown:
        log_table(trainer, metric_name(prefix, "miou_by_threshold", tags), ("background threshold", "mIoU"), shown)


def _percent(value: float) -> float | None:
    return None if value != value else round(100 * value, 2)


def _markdown(columns: Sequence[str], rows: Sequence[Sequence[Cell]]) -> str:
    """A table as TensorBoard renders it; a bar in a name would end its cell."""
    lines = [list(columns), ["---"] * len(columns), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(cell: Cell) -> str:
    if cell is None:
        return ""
    return f"{cell:g}" if isinstance(cell, float) else str(cell).replace("|", "\\|")
