"""Log lines beside a progress bar, and which callbacks of a Trainer are replaced."""

from __future__ import annotations

import io
import logging
import sys

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelSummary, ProgressBar, RichProgressBar

from rca_lightning.callbacks.progress import ProgressLines
from rca_lightning.cli.console import StderrHandler, set_up_console
from rca_lightning.cli.trainer_console import NetworkSummary, console_callbacks

TIP = "💡 Tip: For seamless cloud logging and experiment tracking, try installing [litlogger]"


def test_lines_go_through_what_a_progress_bar_has_put_in_the_place_of_stderr(monkeypatch: pytest.MonkeyPatch):
    logger = logging.Logger("own")
    logger.addHandler(StderrHandler())
    bar = io.StringIO()
    monkeypatch.setattr(sys, "stderr", bar)
    logger.warning("%d images", 3)
    assert bar.getvalue() == "3 images\n"


def test_only_advertisements_are_filtered(caplog: pytest.LogCaptureFixture):
    set_up_console()
    source = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = list(source.filters)
    set_up_console()
    assert source.filters == before  # once, however often
    with caplog.at_level(logging.INFO):
        source.info(TIP)
        source.info("GPU available: False")
    assert [record.getMessage() for record in caplog.records] == ["GPU available: False"]


def test_what_the_trainer_added_itself_is_replaced():
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    lines = console_callbacks(trainer.callbacks, [], bar=False)
    assert [type(one) for one in lines if isinstance(one, (ModelSummary, ProgressBar, ProgressLines))] == [
        NetworkSummary,
        ProgressLines,
    ]
    drawn = console_callbacks(trainer.callbacks, [], bar=True)
    assert [type(one).__name__ for one in drawn if isinstance(one, ProgressBar)] == ["RichProgressBar"]
    assert not [one for one in drawn if isinstance(one, ProgressLines)]


def test_what_the_user_has_named_stays():
    chosen = [ModelSummary(max_depth=2), RichProgressBar()]
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, callbacks=list(chosen))
    kept = console_callbacks(trainer.callbacks, chosen, bar=False)
    assert all(one in kept for one in chosen)
    assert not [one for one in kept if isinstance(one, NetworkSummary)]
