"""Jobs side by side, failing ones, and a signal in between."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from ablate import scheduler
from ablate.child import Child, Usage, tail
from ablate.folders import RunFiles
from ablate.jobs import Job
from ablate.lock import locked
from ablate.scheduler import Scheduler, Stopped

from rca_lightning.errors import OutputError


@dataclass
class Notes:
    """Writes down what it is told."""

    events: list[str] = field(default_factory=list)
    usage: dict[str, Usage] = field(default_factory=dict)
    most: int = 0

    def started(self, job: Job) -> None:
        self.events.append(f"+ {job.name}")

    def ended(self, job: Job, usage: Usage) -> str | None:
        self.events.append(f"- {job.name}")
        self.usage[job.name] = usage
        return "failed" if usage.status else None

    def stopped(self, job: Job, usage: Usage) -> None:
        self.events.append(f"stopped {job.name} {usage.status}")

    def left_out(self, job: Job) -> None:
        self.events.append(f"left out {job.name}")

    def waiting(self, running: Mapping[Job, float], remaining: Sequence[Job]) -> None:
        self.most = max(self.most, len(running))


def jobs_of(out: Path, row: str, command: str, *splits: str, reads: str | None = None) -> list[Job]:
    files, fitted = RunFiles(out, row, 0), RunFiles(out, reads or row, 0)
    fits = [Job(files, fitted, None, (command,))] if reads is None else []
    return [*fits, *(Job(files, fitted, split, ("exit 0",)) for split in splits)]


def schedule(out: Path, jobs: list[Job], processes: int) -> tuple[list[str], Notes]:
    notes = Notes()
    with locked(out) as lock:

        def start(job: Job) -> Child:
            return Child(["sh", "-c", job.words[0]], job.log, os.environ, lock)

        failed = Scheduler(processes, start, notes).run(jobs)
    return [job.name for job in failed], notes


def test_one_at_a_time_scores_what_is_trained_before_it_trains_more(tmp_path: Path):
    jobs = jobs_of(tmp_path, "a", "exit 0", "train", "val") + jobs_of(tmp_path, "b", "exit 0", "val")
    jobs += jobs_of(tmp_path, "c", "", "val", reads="a")
    failed, notes = schedule(tmp_path, jobs, 1)
    assert failed == []
    assert [event for event in notes.events if event.startswith("+")] == [
        "+ fit a-seed0", "+ score a-seed0 on train", "+ score a-seed0 on val", "+ score c-seed0 on val",
        "+ fit b-seed0", "+ score b-seed0 on val",
    ]  # fmt: skip
    assert notes.most == 1


def test_a_failure_leaves_out_what_reads_it_and_nothing_else(tmp_path: Path):
    jobs = jobs_of(tmp_path, "a", "echo first; echo why >&2; exit 3", "val") + jobs_of(tmp_path, "b", "exit 0", "val")
    jobs += jobs_of(tmp_path, "c", "", "val", reads="a")
    failed, notes = schedule(tmp_path, jobs, 2)
    assert sorted(failed) == ["fit a-seed0", "score a-seed0 on val", "score c-seed0 on val"]
    assert {"left out score a-seed0 on val", "left out score c-seed0 on val", "- score b-seed0 on val"} <= set(
        notes.events
    )
    assert notes.usage["fit a-seed0"].status == 3
    assert notes.most == 2
    assert tail(jobs[0].log).splitlines() == ["first", "why"]
    assert tail(jobs[0].log, lines=1) == "why"


def test_processor_time_counts_the_childs_children(tmp_path: Path):
    busy = "python3 -c 'import time\nwhile time.process_time() < 0.3: pass'"
    _, notes = schedule(tmp_path, jobs_of(tmp_path, "a", f"{busy}; {busy}"), 1)
    used = notes.usage["fit a-seed0"]
    assert 0.6 <= used.cpu_seconds < 5
    assert used.wall_seconds >= 0.5


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_children_and_their_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
):
    monkeypatch.setattr(scheduler, "_GRACE", 0.3)
    ready = [tmp_path / name for name in ("ready-a", "ready-b")]
    deaf = f"trap '' TERM; sleep 60 & touch {ready[0]}; while :; do sleep 0.1; done"
    jobs = jobs_of(tmp_path, "a", deaf, "val") + jobs_of(tmp_path, "b", f"touch {ready[1]}; sleep 60")
    jobs += jobs_of(tmp_path, "c", "exit 0")

    def send() -> None:
        while not all(path.exists() for path in ready):
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    sender = threading.Thread(target=send)
    sender.start()
    start = time.monotonic()
    with pytest.raises(Stopped) as caught:
        schedule(tmp_path, jobs, 2)
    sender.join()
    assert caught.value.number == number
    assert time.monotonic() - start < 30  # none of the sleeps was waited for
    assert signal.getsignal(number) is before
    # Every process that held the folder is gone: it can be locked again.
    for _ in range(100):
        try:
            with locked(tmp_path):
                break
        except OutputError:
            time.sleep(0.05)
    else:
        pytest.fail("a process is still running")


def test_a_folder_is_for_one_call_at_a_time(tmp_path: Path):
    with locked(tmp_path), pytest.raises(OutputError, match="at work here"), locked(tmp_path):
        pass
    with locked(tmp_path):
        pass
