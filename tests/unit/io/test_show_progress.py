"""Progress of a loop, with a terminal and without, and times in words."""

from __future__ import annotations

import logging
import sys

import pytest
from rich.console import Console
from rich.progress import Progress

from rca_lightning.io import progress
from rca_lightning.io.progress import duration_in_words, progress_told_to, show_progress, show_work


class Clock:
    """Stands in for the module `time`: ten seconds from one look to the next."""

    now = 0.0

    def monotonic(self) -> float:
        self.now += 10.0
        return self.now


def test_without_a_terminal_a_line_comes_every_30_seconds_and_says_what_is_left(monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "time", Clock())
    with caplog.at_level(logging.INFO):
        assert list(show_progress(iter("abcdefg"), what="convert", total=7, bar=False)) == [*"abcdefg"]
    assert caplog.messages == [
        "convert: image 2 of 7, about 1 min 15 s left",  # 30 s for two
        "convert: image 5 of 7, about 24 s left",
    ]
    assert capsys.readouterr().out == ""


def test_in_a_terminal_a_bar_is_drawn_on_stderr(monkeypatch, caplog, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with caplog.at_level(logging.INFO):
        assert list(show_progress(iter("xy"), what="convert", total=2)) == ["x", "y"]
    shown = capsys.readouterr()
    assert "convert" in shown.err
    assert "100%" in shown.err
    assert shown.out == ""
    assert caplog.messages == []
    with show_work("writing a.onnx"):
        pass
    assert "writing a.onnx" in capsys.readouterr().err


def test_beside_a_bar_no_other_is_drawn(monkeypatch, caplog, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    with Progress(console=Console(stderr=True, force_terminal=True)) as other, caplog.at_level(logging.INFO):
        other.add_task("other", total=1)
        list(show_progress("x", what="convert", total=1))
        with show_work("writing"):
            pass
    assert caplog.messages == ["convert: image 0 of 1"]
    shown = capsys.readouterr().err
    assert "other" in shown
    assert "100%" not in shown
    assert "writing" not in shown


def test_another_process_than_the_first_shows_nothing(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    assert list(show_progress("xy", what="convert", total=2, bar=True)) == ["x", "y"]
    assert capsys.readouterr() == ("", "")


def test_the_bar_of_several_steps_takes_the_place_of_others(capsys):
    seen: list[tuple[int, int]] = []
    with progress_told_to(lambda done, total: seen.append((done, total))):
        assert list(show_progress("xy", what="convert", total=2, bar=True)) == ["x", "y"]
        with show_work("writing"):
            pass
    assert seen == [(0, 2), (1, 2), (2, 2)]
    assert capsys.readouterr() == ("", "")
    list(show_progress("x", what="convert", total=1, bar=True))
    assert len(seen) == 3
    assert "convert" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.04, "0 s"), (1.25, "1.2 s"), (9.96, "10 s"), (59.6, "1 min"), (64.2, "1 min 4 s"), (3600, "1 h"),
     (7325, "2 h 2 min")],
)  # fmt: skip
def test_a_time_in_words(seconds: float, words: str):
    assert duration_in_words(seconds) == words
