"""What the command line prints beside results: log lines, no advertisements; and errors in one line."""

from __future__ import annotations

import importlib
import logging
import sys
import warnings
from typing import Any

from rca_lightning.errors import RCAError
from rca_lightning.io.progress import show_work

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
    messages = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_tip not in messages.filters:
        messages.addFilter(_is_no_tip)
    for message in _WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def _is_no_tip(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith(_TIPS)


def load(module: str) -> Any:
    """Imports a module that may bring torch and Lightning, and shows in a terminal that this takes seconds."""
    with show_work("loading"):
        return importlib.import_module(module)


def own_reason(error: BaseException | None) -> str | None:
    """Finds the first error that is meant for the user in a chain of errors; None if there is none.

    jsonargparse wraps the error of a callback or logger in a `ValueError` of its own, about the types it tried.
    """
    if not (isinstance(error, ValueError) or _is_misconfigured(error)):
        return None
    while error is not None:
        if isinstance(error, (RCAError, ModuleNotFoundError)) or _is_misconfigured(error):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


def _is_misconfigured(error: BaseException | None) -> bool:
    """Whether it is Lightning's `MisconfigurationException`, by its name, as Lightning takes seconds to import."""
    return any(kind.__name__ == "MisconfigurationException" for kind in type(error).__mro__)
