"""A training that is killed at random moments and resumed ends, bit for bit, as one that was not.

The moments are drawn from a seed that is printed. More of them, so many for each way of saving:

    RCA_KILLS=8 RCA_KILLS_SEED=1 python -m pytest -s tests/integration/test_kills.py
"""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest
import torch
import yaml

from tests.integration.children import finish, start
from tests.integration.endings import differences, ending
from tests.integration.moments import KINDS, Moment

KILLS = int(os.environ.get("RCA_KILLS", "3"))
SEED = int(os.environ.get("RCA_KILLS_SEED", "0"))
SAVING = {
    "at the end of an epoch": ({}, {}),
    "every second step": ({"every_n_train_steps": 2}, {}),
    "after validations": ({}, {"check_val_every_n_epoch": 2}),
}


def small(config: Path, saving: str) -> dict:
    content = yaml.safe_load(config.read_text())
    checkpoint, trainer = SAVING[saving]
    content["trainer"]["callbacks"][0]["init_args"].update(checkpoint)
    content["trainer"].update({"max_epochs": 4, "limit_val_batches": 2, **trainer})
    content["model"].update({"backbone": "resnet14", "optimizer": "adamw", "lr": 0.001})
    content["data"].update({"batch_size": 6, "crop_size": 32})
    return content


def words(content: dict, folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    content["trainer"]["callbacks"][0]["init_args"]["dirpath"] = str(folder)
    content["trainer"]["default_root_dir"] = str(folder)
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return ["fit", "--config", str(path), "--ckpt_path", "last"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("saving", SAVING)
def test_killed_and_resumed_equals_uninterrupted(config: Path, tmp_path: Path, saving: str):
    content = small(config, saving)
    whole = tmp_path / "whole"
    assert finish(start(words(content, whole), whole)) == 0, (whole / "log.txt").read_text()
    expected = ending(whole)
    assert int(expected["global_step"]) == 16
    memory = expected["callbacks"]["RegionMemoryCallback"]["memory"]
    assert memory["counts"].sum() > 0
    assert expected["state_dict"]["network.aggregation.valid"].any()

    generator = random.Random(f"{SEED} {saving}")
    first = 3 * list(SAVING).index(saving)
    kinds = [KINDS[(first + number) % len(KINDS)] for number in range(len(KINDS))]
    kills, runs = 0, 0
    while kills < KILLS:
        folder = tmp_path / f"killed {runs}"
        runs += 1
        done = False
        while not done:
            moment = Moment.drawn(generator, kinds[kills % len(kinds)]) if kills < KILLS else None
            process = start(words(content, folder), folder, moment.prepare if moment else None)
            if moment:
                moment.strike(process)
            status = finish(process)
            assert status in (0, -signal.SIGKILL), (folder / "log.txt").read_text()
            done = status == 0
            kills += not done
            print(f"seed {SEED}, {saving}, run {runs}, kill {kills}: {moment}, {_reached(folder)}")
        assert differences(expected, resumed(folder, expected, saving)) == [], f"seed {SEED}, run {runs}"
        assert not list(folder.glob(".last*.part")), "what a kill has left is removed by the next checkpoint"


def resumed(folder: Path, expected: dict, saving: str) -> dict:
    """The ending of a run, with the metrics that its last process had no reason to compute again.

    One that goes on from a checkpoint written after the last batch has no loss to log; where checkpoints are written
    after validation, it has none to repeat either.
    """
    found = ending(folder)
    needed = () if saving != "every second step" else [name for name in expected["metrics"] if "val/" in name]
    found["metrics"] = {name: expected["metrics"][name] for name in expected["metrics"] if name not in needed} | found[
        "metrics"
    ]
    return found


def _reached(folder: Path) -> str:
    found = sorted(folder.glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    steps = {path.name: torch.load(path, weights_only=True)["global_step"] for path in found}  # each one is whole
    return f"{steps}, {len(list(folder.glob('.*.part')))} left half"
