"""The soak in a few steps, and that it would see what is left behind."""

from __future__ import annotations

import json
import logging
import mmap
import os
import threading
from pathlib import Path

import pytest
import soak
from measure.footprint import held

pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")


def test_runs_and_leaves_nothing_behind(tmp_path):
    try:
        result = soak.main(["--quick", "--out", str(tmp_path)])
    finally:
        logging.disable(logging.NOTSET)
    content = json.loads((tmp_path / "soak.json").read_text())
    assert [target["met"] for target in result.targets.values()] == [True] * 4
    assert [row["step"] for row in content["rows"]] == list(range(1, 9))
    assert content["notes"]["highest_mib"] > 50


def test_sees_files_processes_threads_and_memory():
    before = held()
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.read(reader, 1)
        os._exit(0)
    waiting = threading.Thread(target=os.read, args=(reader, 1))
    waiting.start()
    filled = mmap.mmap(-1, 2**26)  # a bytes object may get memory that this process has freed before
    for page in range(0, len(filled), mmap.PAGESIZE):
        filled[page] = 1
    after = held()
    filled.close()
    os.write(writer, b"00")
    os.waitpid(child, 0)
    waiting.join()
    os.close(reader)
    os.close(writer)
    assert (after.files, after.children, after.threads) == (before.files + 2, before.children + 1, before.threads + 1)
    assert after.mib == pytest.approx(before.mib + 64, abs=8)
    assert held().files == before.files
