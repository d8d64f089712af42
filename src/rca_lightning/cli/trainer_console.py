"""What Lightning prints: a line about the network, bars or lines of progress, no table of layers."""

from __future__ import annotations

import logging
import sys
from collections.abc import Collection
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count

from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.cli.console import StderrHandler

logger = logging.getLogger(__name__)


def replace_handlers() -> None:
    """Lets the log of Lightning pass by progress bars, as that of the library does."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        log = logging.getLogger(name)
        for handler in list(log.handlers):
            if type(handler) is logging.StreamHandler and handler.stream in (sys.stderr, sys.__stderr__):
                log.removeHandler(handler)
                log.addHandler(StderrHandler())


class NetworkSummary(ModelSummary):
    """Logs type, size and trained share of the network in one line.

    The table of Lightning lists the loss and the metrics as layers, and counts operations that it has not measured.
    """

    @staticmethod
    def summarize(
        summary_data: list[tuple[str, list[str]]],
        total_parameters: int,
        trainable_parameters: int,
        model_size: float,
        total_training_modes: dict[str, int],
        total_flops: int,
        **summarize_kwargs: Any,
    ) -> None:
        """Log the line."""
        all_of_them, trained = (
            get_human_readable_count(int(n)).strip() for n in (total_parameters, trainable_parameters)
        )
        kind = dict(summary_data)["Type"][0]
        logger.info("network: %s, %s weights, %s trained, %.1f MB", kind, all_of_them, trained, model_size)


def console_callbacks(callbacks: list[Callback], chosen: Collection[Callback], *, bar: bool) -> list[Callback]:
    """Replaces those callbacks of a Trainer that it has added itself: the summary, and without a terminal the bar.

    Args:
        callbacks: of the Trainer.
        chosen: those of them that the user has named; they stay.
        bar: whether a progress bar can be drawn; else lines take its place.
    """
    replaced = [NetworkSummary() if isinstance(one, ModelSummary) and one not in chosen else one for one in callbacks]
    if bar:
        return replaced
    return [*(one for one in replaced if not isinstance(one, ProgressBar) or one in chosen), ProgressLines()]
