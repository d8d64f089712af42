"""Progress of a loop, with a terminal and without."""

from __future__ import annotations

import logging

from rca_lightning.io import progress
from rca_lightning.io.progress import show_progress


def test_progress_is_a_line_now_and_then_or_a_bar(monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    with caplog.at_level(logging.INFO):
        assert list(show_progress(iter("xy"), what="convert", total=2, bar=False)) == ["x", "y"]
    assert caplog.messages == ["convert: image 0 of 2", "convert: image 1 of 2"]
    assert list(show_progress(iter("xy"), what="convert", total=2, bar=True)) == ["x", "y"]
    captured = capsys.readouterr()
    assert "convert" in captured.err
    assert captured.out == ""
