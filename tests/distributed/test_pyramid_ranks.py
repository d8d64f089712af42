"""Crops of a cached pyramid on two gloo processes: the features, batches and head of one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp

from rca_lightning import WSSSDataModule
from rca_lightning.callbacks import feature_cache
from tests.distributed.launching import free_port
from tests.pyramid_fit import fit_pyramid

TRAIN, BATCH, EPOCHS = 13, 4, 3  # photographs; of all processes together


def _fit(rank: int, processes: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    feature_cache._SAMPLE = 3  # of the processes of this test alone
    os.environ["MASTER_PORT"] = str(port)
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    L.seed_everything(1, verbose=False)
    data = WSSSDataModule(
        "synthetic", folder.parent / "photographs", synthetic_train_images=TRAIN, synthetic_val_images=3,
        synthetic_image_size=48, batch_size=BATCH // processes, num_workers=0, crop_size=32,
    )  # fmt: skip
    cluster = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    module, photographs, trainer = fit_pyramid(data, folder, epochs=EPOCHS, limit_val_batches=0, **cluster)
    state = {
        "weights": module.state_dict(), "seen": module.seen, "photographs": photographs, "steps": trainer.global_step,
    }  # fmt: skip
    torch.save(state, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process, and each of two, ended with."""
    root, states = tmp_path_factory.mktemp("pyramid"), []
    for processes in (1, 2):
        folder = root / str(processes)
        mp.start_processes(_fit, args=(processes, free_port(), folder), nprocs=processes, start_method="fork")
        states += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    return states


def test_ranks_agree_bit_for_bit(states):
    _, first, second = states
    for name, value in first["weights"].items():
        assert torch.equal(second["weights"][name], value), name


def test_projections_are_those_of_one_process(states):
    one, *ranks = states
    for rank in ranks:
        for name, value in one["weights"].items():
            if not name.startswith("head."):
                torch.testing.assert_close(rank["weights"][name], value, rtol=1e-5, atol=1e-5)


def test_a_batch_of_two_processes_is_one_of_one(states):
    one, first, second = states
    assert one["steps"] == first["steps"] == second["steps"] == EPOCHS * (TRAIN // BATCH)
    for (epoch, whole), (_, half), (_, other) in zip(one["seen"], first["seen"], second["seen"], strict=True):
        assert sorted(whole) == sorted(half + other), epoch


def test_ranks_share_the_computing(states):
    one, first, second = states
    assert one["photographs"] == TRAIN
    assert first["photographs"] + second["photographs"] == TRAIN
    assert second["photographs"] > 0
