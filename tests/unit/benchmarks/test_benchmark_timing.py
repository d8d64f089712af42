"""`measure.timing` and `measure.result` against times that are known."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from measure.result import Result
from measure.timing import Times, as_rows, in_turns, ratio

SLOW = Times(wall=[4.0, 9.0, 8.0], processor=[2.0, 6.0, 20.0])
FAST = Times(wall=[1.0, 3.0, 1.0], processor=[1.0, 2.0, 2.0])


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A clock that stands still unless `now` is moved."""
    hands = SimpleNamespace(now=100.0)
    monkeypatch.setattr("measure.timing.time", SimpleNamespace(perf_counter=lambda: hands.now))
    return hands


@pytest.mark.parametrize(("accelerator", "expected"), [(False, 3.0), (True, 4.0)])
def test_ratio_is_the_median_within_rounds(accelerator: bool, expected: float, monkeypatch: pytest.MonkeyPatch):
    """Processor: 2, 3 and 10 times; clock: 4, 3 and 8 times. The ratio of the medians would be 3 and 8."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: accelerator)
    assert ratio(SLOW, FAST) == expected
    assert SLOW.steady == (8.0 if accelerator else 6.0)


def test_ways_take_turns_and_the_warmup_does_not_count(clock: SimpleNamespace):
    order = []

    def way(name: str, seconds: list[float]):
        def run() -> None:
            order.append(name)
            clock.now += seconds.pop(0)

        return run

    times = in_turns({"a": way("a", [50, 1, 2, 4]), "b": way("b", [70, 3, 8, 5])}, rounds=3)
    assert "".join(order) == "abababab"
    assert times["a"].wall == [1, 2, 4]
    assert times["b"].wall == [3, 8, 5]
    assert (times["a"].seconds, times["b"].seconds) == (2, 5)


def test_no_warmup_when_none_is_asked_for(clock: SimpleNamespace):
    calls = []
    in_turns({"a": lambda: calls.append(0)}, rounds=2, warmup=0)
    assert len(calls) == 2


def test_processor_seconds_do_not_count_waiting():
    def work() -> None:
        sum(index * index for index in range(200_000))

    found = in_turns({"work": work, "wait": lambda: __import__("time").sleep(0.05)}, rounds=1)
    assert found["wait"].wall[0] >= 0.05
    assert found["wait"].processor[0] < 0.04
    assert found["work"].processor[0] > 0


def test_rows_hold_medians_and_the_ratio(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    slow, fast = as_rows({"slow": SLOW, "fast": FAST}, "fast")
    assert slow == {"way": "slow", "seconds": 8.0, "processor_seconds": 6.0, "ratio": 3.0, "rounds": 3}
    assert fast == {"way": "fast", "seconds": 1.0, "processor_seconds": 2.0, "ratio": 1.0, "rounds": 3}


def test_targets_are_met_up_to_their_limit():
    result = Result("name", "title", [])
    for found in (1.9, 2.0, 2.1):
        result.at_most(f"most {found}", found, 2.0)
        result.at_least(f"least {found}", found, 2.0)
    met = {name for name, target in result.targets.items() if target["met"]}
    assert met == {"most 1.9", "most 2.0", "least 2.0", "least 2.1"}
    assert result.targets["most 2.1"] == {"limit": 2.0, "found": 2.1, "met": False}


def test_a_result_writes_its_drawings_and_prints_its_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    result = Result("name", "title", [{"way": "a", "seconds": 0.12345}], notes={"more": [{"column": 7}], "word": "x"})
    result.at_most("limit", 3.0, 2.0)
    result.drawings["line.txt"] = lambda path: path.write_text("drawn")
    content = json.loads(result.write(tmp_path / "new").read_text())
    assert content["machine"]["torch"] == torch.__version__
    assert {name: content[name] for name in content if name != "machine"} == result.content()
    assert (tmp_path / "new" / "line.txt").read_text() == "drawn"
    result.show()
    shown = capsys.readouterr().out
    assert "0.123" in shown
    assert "column" in shown
    assert "limit: 3 (target 2) MISSED" in shown
