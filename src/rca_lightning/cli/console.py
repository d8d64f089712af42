"""What the command line prints beside results: log lines, a summary of the network, no advertisements."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Collection
from typing import Any

from lightning.pytorch.callbacks import Callback, ModelSummary, ProgressBar
from lightning.pytorch.utilities.model_summary.model_summary import get_human_readable_count

from rca_lightning.callbacks.progress import ProgressLines

logger = logging.getLogger(__name__)

_TIPS = "💡 Tip: For seamless cloud "  # to install litlogger, litmodels
_WARNINGS = (
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",  # in code of Lightning, which no user can change
    r"`LightningModule.configure_optimizers` returned `None`",  # behind a frozen backbone
    r"Found \d+ module\(s\) in eval mode at the start of training",  # frozen layers are asked for by arguments
)


class StderrHandler(logging.Handler):
    """Writes to what `sys.stderr` is at that moment.

    A progress bar takes its place while it is drawn; lines that pass it by are glued to the bar and erased with it.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            print(self.format(record), file=sys.stderr, flush=True)
        except Exception:  # as every handler of logging: a line less, not a run less
            self.handleError(record)


def set_up_console() -> None:
    """Shows the log of this library, and filters messages of Lightning that say nothing of the run."""
    own = logging.getLogger("rca_lightning")
    own.setLevel(logging.INFO)
    if not own.handlers:
        own.addHandler(StderrHandler())
    for name in ("lightning.pytorch", "lightning.fabric"):
        _replace_handlers(logging.getLogger(name))
    messages = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_tip not in messages.filters:
        messages.addFilter(_is_no_tip)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _replace_handlers(logger: logging.Logger) -> None:
    for handler in list(logger.handlers):
        if type(handler) is logging.StreamHandler and handler.stream in (sys.stderr, sys.__stderr__):
            logger.removeHandler(handler)
            logger.addHandler(StderrHandler())


def _is_no_tip(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_TIPS)


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
