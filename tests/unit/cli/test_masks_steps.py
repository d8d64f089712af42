"""Estimate of the time left, words of the command and errors of `rca masks`."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from PIL import Image

from rca_lightning.cli import masks, run_masks, steps
from rca_lightning.cli.run_folder import RunFolder
from rca_lightning.cli.steps import Steps
from rca_lightning.errors import ArgumentError, DataError, DatasetNotFoundError, MissingExtraError, OutputError
from rca_lightning.io.progress import show_progress


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now


def test_time_left_is_of_this_step_and_of_later_ones(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(steps, "time", clock)
    shown = Steps({"one": 10.0, "two": 20.0, "three": 5.0}, every=1e9)
    assert shown.left() == 35
    shown.begin("one")
    clock.now = 5.0
    shown.update(1, 4)  # among it what comes before the first part
    clock.now = 7.0
    shown.update(2, 4)
    assert shown.left() == pytest.approx(2.0 / 0.25 * 0.5 + 25)
    clock.now = 20.0
    shown.end()
    assert shown.left() == pytest.approx(25 * 2.0)  # twice as slow as expected
    shown.skip("two")
    assert shown.left() == pytest.approx(10.0)
    assert shown.seconds == {"one": 20.0}


def test_loops_within_a_step_are_shown_and_do_not_spoil_the_time_left(monkeypatch, capsys):
    clock = Clock()
    monkeypatch.setattr(steps, "time", clock)
    with Steps({"one": 100.0}, every=0) as shown:
        shown.begin("one")
        for _ in show_progress("ab", what="labels", total=2):
            clock.now += 10.0
        assert shown.left() == 80
        shown.update(1, 10)
        clock.now += 10.0
        shown.update(2, 10)
        assert shown.left() == pytest.approx(80.0)  # ten seconds a tenth
    lines = capsys.readouterr().err.splitlines()
    assert lines[:4] == [
        "one, about 2 min left",
        "one: 0 of 2, about 2 min left",
        "one: 1 of 2, about 1 min 30 s left",
        "one: 2 of 2, about 1 min 20 s left",
    ]


def test_help_fits_a_screen(capsys):
    with pytest.raises(SystemExit):
        masks.main(["--help"])
    told = capsys.readouterr().out
    assert len(told.splitlines()) <= 30
    assert max(map(len, told.splitlines())) <= 100


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    folder = tmp_path / "photographs"
    folder.mkdir()
    for name, value in (("a", 0), ("b", 200)):
        Image.new("RGB", (32, 32), (value, 0, 0)).save(folder / f"{name}.png")
    return folder


def test_each_mistake_is_one_error(photographs: Path, tmp_path: Path, monkeypatch):
    out = ["--out", str(tmp_path / "out"), "--weights", "none", "--backbone", "resnet14"]
    with pytest.raises(DatasetNotFoundError, match=r"photographs=.*absent"):
        masks.main([str(tmp_path / "absent"), *out])
    with pytest.raises(DataError, match="no tags found"):
        masks.main([str(photographs), *out])
    (photographs / "tags.csv").write_text("image,tags\na,dog\nb,dgo\n")
    (photographs / "classes.txt").write_text("dog\ncat\n")
    with pytest.raises(DataError, match="did you mean 'dog'"):
        masks.main([str(photographs), *out])
    (photographs / "tags.csv").write_text("image,tags\na,dog\nb,dog\n")
    with pytest.raises(DataError, match="every tagged photograph shows 'dog'"):
        masks.main([str(photographs), *out])
    with pytest.raises(ArgumentError, match="these are the photographs"):
        masks.main([str(photographs), "--out", str(photographs)])
    with pytest.raises(DatasetNotFoundError, match="masks="):
        masks.main([str(photographs), *out, "--masks", str(tmp_path / "absent")])
    monkeypatch.setitem(__import__("sys").modules, "pydensecrf.densecrf", None)
    with pytest.raises(MissingExtraError, match=r"rca-lightning\[crf\]"):
        masks.main([str(photographs), *out, "--refine", "dense_crf"])
    with pytest.raises(SystemExit) as ended:
        masks.main([str(photographs), *out, "--thresold", "0.3"])
    assert ended.value.code == 2


def test_interrupt_says_how_to_go_on(photographs: Path, tmp_path: Path, monkeypatch, capsys):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    def ended(*_: object) -> None:  # as Lightning ends a fit that is interrupted
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            raise SystemExit(1)  # noqa: B904

    for how in (interrupted, ended):
        monkeypatch.setattr(run_masks, "_run", how)
        with pytest.raises(SystemExit) as stopped:
            masks.main([str(photographs), "--out", str(tmp_path / "out")])
        assert stopped.value.code == 130
        assert "the same command goes on" in capsys.readouterr().err


def test_full_disk_and_a_second_run_are_named(tmp_path: Path, monkeypatch):
    run = RunFolder(tmp_path / "out")
    with run.opened():
        other = RunFolder(tmp_path / "out")
        with pytest.raises(OutputError, match="another rca masks is at work"), other.opened():
            pass
        monkeypatch.setattr(os, "fdopen", _full)
        with pytest.raises(OutputError, match=r"out=.*No space left.*the same command then goes on"):
            run.remember("fit", {})


def _full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")
