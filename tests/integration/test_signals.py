"""A signal to a real training: it saves between two batches, ends with status 75, and goes on as if it had not come."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from rca_lightning.callbacks.signals import EXIT_CODE
from tests.integration.children import finish, send, start, wait_for
from tests.integration.conftest import ROOT, write_config
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


@pytest.fixture(scope="module")
def whole(synthetic_root: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Ending of a run without a signal."""
    folder = tmp_path_factory.mktemp("whole")
    return finished(folder, words(write_config(folder, synthetic_root), folder))


def finished(folder: Path, command: list[str]) -> dict[str, Any]:
    assert finish(start(command, folder)) == 0, (folder / "log.txt").read_text()
    return ending(folder)


def check_stopped(folder: Path, name: str, steps: int) -> None:
    log = (folder / "log.txt").read_text()
    assert f"{name}: saved {folder / 'last.ckpt'}; go on with --ckpt_path last" in log
    assert 0 < torch.load(folder / "last.ckpt", weights_only=True)["global_step"] < steps


def check_resumed(folder: Path, command: list[str], whole: dict[str, Any]) -> None:
    assert differences(whole, finished(folder, command)) == []
    assert "not resumable" not in (folder / "log.txt").read_text()
    assert [path.name for path in folder.glob("last*")] == ["last.ckpt"]


def test_signalled_within_an_accumulation(config: Path, tmp_path: Path):
    folder = tmp_path / "stopped"
    process = start(words(config, folder, accumulate=2), folder)
    wait_for(lambda: batches(folder) >= 5, process)
    send(process, signal.SIGUSR1)
    assert finish(process) == EXIT_CODE == 75
    check_stopped(folder, "SIGUSR1", steps=6)
    assert not (folder / "metrics.pt").exists()
    whole = finished(tmp_path / "whole", words(config, tmp_path / "whole", accumulate=2))
    check_resumed(folder, words(config, folder, "--ckpt_path", "last", accumulate=2), whole)


def test_the_command_itself_is_signalled(config: Path, tmp_path: Path, whole: dict[str, Any]):
    """With no fork of this process: the program as a user starts it."""
    folder = tmp_path / "run"
    command = words(config, folder, "--ckpt_path", "last")
    with (folder / "log.txt").open("a") as log:
        process = subprocess.Popen([sys.executable, "-m", "rca_lightning", *command], stdout=log, stderr=log, cwd=ROOT)
    deadline = time.monotonic() + 120
    while batches(folder) < 4:
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == EXIT_CODE
    assert "--ckpt_path last: there is no checkpoint yet, training begins anew" in (folder / "log.txt").read_text()
    check_stopped(folder, "SIGTERM", steps=12)
    check_resumed(folder, command, whole)


def test_slurm_saves_at_a_safe_point_and_requeues(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: dict[str, Any]
):
    folder, tools = tmp_path / "job", tmp_path / "bin"
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

    assert differences(whole, finished(folder, words(config, folder))) == []
    assert batches(folder) - before == 12 - step, "it has gone on from there"
