"""A process that raises brings down the whole run within a minute, and its error is there to read."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.distributed.launching import TWO_PROCESSES, free_port, output, start
from tests.integration.conftest import config, synthetic_root  # noqa: F401  (fixtures)

CORRUPT = "not a photograph"
Damage = Callable[[int], str]


@pytest.fixture
def damage(config: Path, synthetic_root: Path, tmp_path: Path) -> Damage:  # noqa: F811
    """Makes the photograph at an index unreadable, in batches of two for each of two processes; gives its name.

    Even indices go to the first process, odd ones to the second.
    """
    content = yaml.safe_load(config.read_text())
    folder = tmp_path / "photographs"
    shutil.copytree(synthetic_root / "JPEGImages", folder)
    content["data"] |= {"image_dir": str(folder), "batch_size": 2, "shuffle": False}
    content["model"]["backbone"] = "resnet14"
    content["trainer"] |= {"max_epochs": 1, "limit_val_batches": 0}
    note = {"class_path": "tests.distributed.failing.NoteWhen", "init_args": {"folder": str(tmp_path)}}
    content["trainer"]["callbacks"] = [note]
    config.write_text(yaml.safe_dump(content))
    names = Path(content["data"]["split_files"]["train"]).read_text().split()

    def damage_one(index: int) -> str:
        (folder / f"{names[index]}.jpg").write_text(CORRUPT)
        return names[index]

    return damage_one


def end(process: subprocess.Popen[str], raised: Path) -> str:
    """What a run has written that ended, not well, within a minute of an error."""
    text = output(process)
    assert raised.exists(), text[-6000:]
    seconds = time.time() - float(raised.read_text().split()[0])
    assert seconds < 60, text[-6000:]
    return text


def test_started_by_lightning(config: Path, damage: Damage, tmp_path: Path):  # noqa: F811
    name = damage(5)
    process = start("-m", "rca_lightning", "fit", "--config", config, *TWO_PROCESSES)
    text = end(process, tmp_path / "raised-1.txt")
    assert process.returncode != 0
    assert f"{name}.jpg" in text
    assert "process 1 of 2 raised DataError" in text  # says the other
    assert "Traceback" not in text


def test_started_by_torchrun(config: Path, damage: Damage, tmp_path: Path):  # noqa: F811
    name = damage(4)
    port = f"--master_port={free_port()}"
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node=2", port, "-m", "rca_lightning")
    process = start(*torchrun, "fit", "--config", config, *TWO_PROCESSES)
    text = end(process, tmp_path / "raised-0.txt")
    assert process.returncode != 0
    assert f"{name}.jpg" in text


def test_tasks_that_nobody_ends(config: Path, damage: Damage, tmp_path: Path):  # noqa: F811
    """The first process fails, which keeps the store, and the other waits for it and does not look."""
    name = damage(4)
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"] += [
        {"class_path": "tests.distributed.failing.Deaf", "init_args": {"rank": 1}},
        {"class_path": "rca_lightning.FailTogether", "init_args": {"patience": 2}},
    ]
    config.write_text(yaml.safe_dump(content))
    process = start("-m", "tests.distributed.failing", "fit", "--config", config, *TWO_PROCESSES)
    text = end(process, tmp_path / "raised-0.txt")
    assert "statuses [1, 1]" in text
    assert f"rca: {tmp_path / 'photographs' / name}.jpg" in text
    assert "process 0 of 2 raised DataError" in text
    assert not (tmp_path / "raised-1.txt").exists()


def test_number_that_is_not_finite_ends_both_with_one_message(config: Path, tmp_path: Path):  # noqa: F811
    content = yaml.safe_load(config.read_text())
    content["data"] |= {"batch_size": 2}
    content["model"]["backbone"] = "resnet14"
    content["trainer"] |= {"max_epochs": 1, "limit_val_batches": 0}
    note = {"class_path": "tests.distributed.failing.NoteWhen", "init_args": {"folder": str(tmp_path)}}
    content["trainer"]["callbacks"] = [{"class_path": "tests.distributed.observing.Poison"}, note]
    config.write_text(yaml.safe_dump(content))
    process = start("-m", "rca_lightning", "fit", "--config", config, *TWO_PROCESSES)
    text = end(process, tmp_path / "raised-0.txt")
    assert process.returncode != 0
    # Standardising the embeddings over both has carried it to the first, which says who began.
    begun = "rca: rank 1: pixels of 'train_00006' not finite"
    assert begun in text
    assert f"raised NonFiniteError: {begun.removeprefix('rca: ')}" in text
    assert "; mend or leave out the photograph, or give on_non_finite='skip'" in text
    for rank in range(2):
        assert (tmp_path / f"raised-{rank}.txt").read_text().split()[1] == "NonFiniteError"
