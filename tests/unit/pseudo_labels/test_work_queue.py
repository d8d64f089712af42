"""WorkQueue: calls are made in order, memory is bounded, errors come through, and no process stays behind."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch

import rca_lightning
from rca_lightning.errors import ArgumentError, RCAError
from rca_lightning.pseudo_labels import workers
from rca_lightning.pseudo_labels.workers import WorkQueue

PATIENCE = 250  # seconds: a new process imports torch, and the machine may be busy


def wait_until(path: Path) -> None:
    end = time.monotonic() + PATIENCE
    while not path.exists():
        assert time.monotonic() < end, f"no {path}"
        time.sleep(0.01)


def interrupted(path: Path) -> None:
    """What Ctrl-C does to every process of a terminal."""
    os.kill(os.getpid(), signal.SIGINT)
    note(path, "interrupted")


def note(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(f"{text} {os.getpid() == int(os.environ['MAIN'])} {torch.get_num_threads()}\n")


def refuse(name: str, value: int, remedy: str) -> None:
    raise ArgumentError(name, value, remedy)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.fixture
def lines(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("MAIN", str(os.getpid()))
    return tmp_path / "lines"


def test_one_worker_from_its_first_call_to_its_death(tmp_path, lines):
    """Order, bound, errors and a killed worker in one test: each new process imports torch and this package."""
    gate, queue = tmp_path / "gate", WorkQueue(1, name="labels.workers")
    queue.submit(wait_until, gate)
    queue.submit(interrupted, lines)
    assert not gate.exists()  # two calls were taken without waiting for either
    timer = threading.Timer(0.5, gate.touch)
    timer.start()
    queue.submit(note, lines, "third")
    assert gate.exists()  # for the third the first had to be over
    for text in ("fourth", "fifth"):
        queue.submit(note, lines, text)
    queue.submit(refuse, "size", 3, "give 4")
    with pytest.raises(ArgumentError, match=r"^size=3: give 4$") as caught:
        deque(queue.submit(note, lines, "later") for _ in range(3))  # two may wait, so the third must see the error
    assert caught.value.args == ("size", 3, "give 4")
    queue.submit(note, lines, "last")
    queue.submit(die)
    with pytest.raises(RCAError, match=r"^labels\.workers=1: a worker process was killed, .*give fewer, or 0"):
        queue.join()
    written = [line for line in lines.read_text().splitlines() if not line.startswith("later")]
    assert written == [f"{text} False 1" for text in ("interrupted", "third", "fourth", "fifth", "last")]
    assert multiprocessing.active_children() == []
    queue.close()  # once more does no harm


def test_worker_killed_between_two_calls_is_told_too(monkeypatch):
    class Broken:
        def __init__(self, *_, **__) -> None:
            pass

        def submit(self, *_):
            raise BrokenProcessPool("a process was terminated abruptly")

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Broken)
    with pytest.raises(RCAError, match=r"^workers=2: a worker process was killed"):
        WorkQueue(2).submit(os.getpid)


def test_workers_end_with_a_killed_main_process(tmp_path):
    script = tmp_path / "main.py"
    script.write_text(
        "import os, signal, sys, time, types\n"
        "from pathlib import Path\n"
        # Importing the whole package, in this process and in its worker, would take longer than the test.
        "sys.modules['rca_lightning'] = package = types.ModuleType('rca_lightning')\n"
        f"package.__path__ = {list(rca_lightning.__path__)}\n"
        "from rca_lightning.pseudo_labels.workers import WorkQueue\n"
        "if __name__ == '__main__':\n"
        "    queue = WorkQueue(1)\n"
        "    queue.submit(Path(sys.argv[1]).touch)\n"
        "    while not Path(sys.argv[1]).exists():\n"
        "        time.sleep(0.01)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    # The worker has inherited the pipe: reading it ends when the last process that holds it has ended.
    ended = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "done")], stdout=subprocess.PIPE, timeout=PATIENCE, check=False
    )
    assert ended.returncode == -signal.SIGKILL
    assert (tmp_path / "done").exists()


def test_without_workers_calls_are_made_here_and_now(lines):
    queue = WorkQueue(0)
    queue.submit(note, lines, "first")
    queue.submit(lambda: note(lines, "cannot be pickled"))
    threads = torch.get_num_threads()
    assert lines.read_text() == f"first True {threads}\ncannot be pickled True {threads}\n"
    with pytest.raises(ArgumentError, match=r"^size=3"):
        queue.submit(refuse, "size", 3, "give 4")
    queue.join()
    queue.close()
    assert len(lines.read_text().splitlines()) == 2


def test_threads_share_this_process_and_are_as_bounded(lines):
    queue, gate, begun = WorkQueue(1, threads=True), threading.Event(), []
    queue.submit(lambda: gate.wait(PATIENCE))
    queue.submit(lambda: begun.append("second"))
    assert begun == []  # two calls were taken without waiting for either
    timer = threading.Timer(0.3, gate.set)
    timer.start()
    queue.submit(note, lines, "third")
    assert gate.is_set()  # for the third the first had to be over
    queue.submit(refuse, "size", 3, "give 4")
    with pytest.raises(ArgumentError, match=r"^size=3: give 4$"):
        queue.join()
    timer.join()
    assert begun == ["second"]
    assert lines.read_text().startswith("third True")
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("rca")]


def test_fewer_than_none_is_refused_by_name():
    with pytest.raises(ArgumentError, match=r"^trainer_workers=-1: give 0"):
        WorkQueue(-1, name="trainer_workers")


def test_no_process_starts_before_the_first_call():
    queue = WorkQueue(3)
    assert multiprocessing.active_children() == []
    queue.join()
