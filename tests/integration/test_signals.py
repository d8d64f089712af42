"""A signal to a real training: it saves between two batches, ends with status 75, and goes on as if it had not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from rca_lightning.callbacks.signals import EXIT_CODE
from tests.integration.children import finish, send, start, wait_for
from tests.integration.endings import differences, ending

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="signals are those of POSIX")
SLOW = {"class_path": "tests.integration.stopping.SlowBatches"}


def words(config: Path, folder: Path, *more: str, accumulate: int = 1) -> list[str]:
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(folder)
    content["trainer"]["callbacks"].append(SLOW)
    content["trainer"] |= {"max_epochs": 3, "default_root_dir": str(folder), "accumulate_grad_batches": accumulate}
    content["trainer"]["limit_val_batches"] = 1
    content["model"] |= {"backbone": "resnet14"}
    content["data"] |= {"batch_size": 6, "crop_size": 32}
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["fit", "--config", str(path), *more]


def batches(folder: Path) -> int:
    return len(list(folder.glob("batch *")))


@pytest.mark.parametrize(("name", "accumulate", "after"), [("SIGUSR1", 2, 5), ("SIGTERM", 1, 4)])
def test_signalled_and_resumed_equals_uninterrupted(
    config: Path, tmp_path: Path, name: str, accumulate: int, after: int
):
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert finish(start(words(config, whole, accumulate=accumulate), whole)) == 0, (whole / "log.txt").read_text()
    process = start(words(config, stopped, accumulate=accumulate), stopped)
    wait_for(lambda: batches(stopped) >= after, process)
    send(process, signal.Signals[name])
    assert finish(process) == EXIT_CODE == 75
    log = (stopped / "log.txt").read_text()
    assert f"{name}: saved {stopped / 'last.ckpt'}; go on with --ckpt_path last" in log
    saved = torch.load(stopped / "last.ckpt", weights_only=True)
    assert 0 < saved["global_step"] < 12 // accumulate
    assert not (stopped / "metrics.pt").exists()

    again = words(config, stopped, "--ckpt_path", "last", accumulate=accumulate)
    assert finish(start(again, stopped)) == 0, (stopped / "log.txt").read_text()
    assert "not resumable" not in (stopped / "log.txt").read_text()
    assert differences(ending(whole), ending(stopped)) == []
    assert [path.name for path in stopped.glob("last*")] == ["last.ckpt"]


def test_slurm_saves_at_a_safe_point_and_requeues(config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole, folder, tools = tmp_path / "whole", tmp_path / "job", tmp_path / "bin"
    assert finish(start(words(config, whole), whole)) == 0, (whole / "log.txt").read_text()
    tools.mkdir()
    (tools / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/requeued\n')
    (tools / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    variables = {
        "JOB_ID": "17",
        "NTASKS": "1",
        "NTASKS_PER_NODE": "1",
        "JOB_NAME": "rca",
        "PROCID": "0",
        "LOCALID": "0",
    }
    for variable, value in {**variables, "NODEID": "0", "JOB_NUM_NODES": "1"}.items():
        monkeypatch.setenv(f"SLURM_{variable}", value)
    process = start(words(config, folder), folder)
    wait_for(lambda: batches(folder) >= 5, process)
    send(process, signal.SIGUSR1)
    wait_for(lambda: (tmp_path / "requeued").exists(), process)
    send(process, signal.SIGKILL)  # as SLURM does
    assert finish(process) == -signal.SIGKILL
    assert (tmp_path / "requeued").read_text() == "requeue 17\n"
    step = torch.load(folder / "hpc_ckpt_1.ckpt", weights_only=True)["global_step"]
    assert step in (5, 6, 7)
    before = batches(folder)

    assert finish(start(words(config, folder), folder)) == 0, (folder / "log.txt").read_text()
    assert batches(folder) - before == 12 - step, "it has gone on from there"
    assert differences(ending(whole), ending(folder)) == []


def test_the_command_itself_is_killed_and_signalled(config: Path, tmp_path: Path):
    """With no fork of this process: the program as a user starts it."""
    folder = tmp_path / "run"
    command = [sys.executable, "-m", "rca_lightning", *words(config, folder, "--ckpt_path", "last")]
    root = Path(__file__).resolve().parents[2]
    for number, status in ((signal.SIGKILL, -signal.SIGKILL), (signal.SIGTERM, EXIT_CODE)):
        before = batches(folder)
        with (folder / "log.txt").open("a") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, cwd=root)
            deadline = time.monotonic() + 120
            while batches(folder) < before + 2:
                assert process.poll() is None, (folder / "log.txt").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
            process.send_signal(number)
            assert process.wait(timeout=60) == status
    text = (folder / "log.txt").read_text()
    assert text.count("--ckpt_path last: there is no checkpoint yet, training begins anew") >= 1
    assert f"SIGTERM: saved {folder / 'last.ckpt'}" in text
    torch.load(folder / "last.ckpt", weights_only=True)
