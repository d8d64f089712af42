"""Damaged files end in a result or an error of the library; `run.py` tries many more of them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

if sys.platform != "linux":
    pytest.skip("processes are bounded by what Linux has for it", allow_module_level=True)

from tests.fuzz.guard import MEMORY
from tests.fuzz.running import failures
from tests.fuzz.targets import TARGETS, Target

CASES = 160  # of each kind of file


@pytest.mark.parametrize("name", TARGETS)
def test_no_file_leads_to_anything_else(name: str, tmp_path: Path):
    assert list(failures(name, range(CASES), seed=0, folder=tmp_path / name)) == []


@pytest.mark.parametrize("name", TARGETS)
def test_sound_files_are_read_and_many_damaged_ones_are_not(name: str, tmp_path: Path):
    from rca_lightning.errors import RCAError
    from tests.fuzz.running import warm_up

    target = TARGETS[name]
    warm_up(target, tmp_path)
    outcomes = set()
    for content in [*target.seeds, *(target.case(0, number) for number in range(30))]:
        (tmp_path / target.file).write_bytes(content)
        for reader in target.readers:
            try:
                reader(tmp_path / target.file)
                outcomes.add((reader, True))
            except RCAError:  # noqa: PERF203
                outcomes.add((reader, False))
    assert outcomes == {(reader, read) for reader in target.readers for read in (True, False)}


def test_cases_are_the_same_for_the_same_numbers():
    for target in TARGETS.values():
        assert target.case(3, 17) == target.case(3, 17)
        assert len({target.case(3, number) for number in range(20)}) > 10


def _opens_another_file(path: Path) -> None:
    Path("/etc/hostname").read_bytes()


def _leads_out(path: Path) -> None:
    (path.parent / ".." / "beside").read_bytes()


def _runs_a_program(path: Path) -> None:
    subprocess.run(["true"], check=True)


def _swallows_it(path: Path) -> None:
    try:
        Path("made").mkdir()
    except BaseException:
        return


def _never_ends(path: Path) -> None:
    while True:
        time.perf_counter()


def _takes_all(path: Path) -> None:
    np.ones(2 * MEMORY, dtype=np.uint8)


def _ends_the_process(path: Path) -> None:
    os._exit(9)


@pytest.mark.parametrize(
    ("reader", "said"),
    [
        (_opens_another_file, "opened '/etc/hostname'"),
        (_leads_out, "opened '.*beside'"),
        (_runs_a_program, "subprocess.Popen"),
        (_swallows_it, "os.mkdir"),
        (_never_ends, "more than 0.2 s"),
        (_takes_all, "MemoryError"),
        (_ends_the_process, "the process ended with status 9"),
    ],
)
def test_what_no_reader_may_do_is_noticed(reader, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tests.fuzz.guard.SECONDS", 0.2)
    monkeypatch.setattr("tests.fuzz.running.warm_up", lambda *_: None)
    monkeypatch.setitem(TARGETS, "wrong", Target("a.txt", lambda: [b"1 2 3"], TARGETS["tags"].kinds, (reader,)))
    (found,) = failures("wrong", range(1), seed=5, folder=tmp_path / "folder")
    assert found.startswith("python tests/fuzz/run.py --target wrong --seed 5 --only 0\n")
    assert re.search(said, found)
