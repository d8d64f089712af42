"""`measure.parts`: what fails or takes too long loses no other part."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest
from measure.parts import Parts, time_limit


def test_an_error_is_noted_beside_what_was_found(tmp_path: Path):
    parts = Parts(tmp_path / "new" / "all.json", {"machine": "here"}, seconds=60)

    def fails(found: dict) -> None:
        found["rows"] = [1]
        raise ValueError("no such size")

    parts.run("first", fails, seconds=10)
    assert json.loads(parts.path.read_text())["parts"]["first"]["error"] == "ValueError: no such size"
    parts.run("leaves", lambda found: exit(2), seconds=10)
    parts.run("last", lambda found: found.update(rows=[2]), seconds=10)
    content = json.loads(parts.path.read_text())
    assert content["machine"] == "here"
    assert {name: part.get("rows") for name, part in content["parts"].items()} == {
        "first": [1],
        "leaves": None,
        "last": [2],
    }
    assert parts.errors == {"first": "ValueError: no such size", "leaves": "SystemExit: 2"}
    assert [path.name for path in parts.path.parent.iterdir()] == ["all.json"]


def test_a_part_ends_with_its_time_and_the_next_gets_its_own(tmp_path: Path):
    parts = Parts(tmp_path / "all.json", {}, seconds=60)
    parts.run("slow", lambda found: time.sleep(30), seconds=0.1)
    parts.run("next", lambda found: time.sleep(0.2), seconds=30)
    assert parts.errors == {"slow": "TimeoutError: not done within 0 s"}
    assert 0.1 <= parts.content["parts"]["slow"]["seconds"] < 10


def test_no_part_starts_when_the_time_of_all_is_over(tmp_path: Path):
    parts = Parts(tmp_path / "all.json", {}, seconds=0)
    parts.run("late", lambda found: found.update(rows=[]), seconds=10)
    assert parts.content["parts"]["late"] == {"error": "TimeoutError: no time was left for it", "seconds": 0.0}


def test_an_interrupt_is_no_failed_part(tmp_path: Path):
    def interrupted(found: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Parts(tmp_path / "all.json", {}, seconds=60).run("part", interrupted, seconds=10)


def test_the_limit_of_others_is_put_back():
    rang = []
    handler = signal.signal(signal.SIGALRM, lambda *_: rang.append(time.monotonic()))
    before = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        with time_limit(50):
            assert 49 < signal.getitimer(signal.ITIMER_REAL)[0] <= 50
        assert 90 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
        with pytest.raises(TimeoutError, match="not done within 0 s"), time_limit(0.05):
            time.sleep(30)
        signal.setitimer(signal.ITIMER_REAL, 0.01)
        time.sleep(0.05)
        assert len(rang) == 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, *before)
        signal.signal(signal.SIGALRM, handler)
