"""AffinityModule on two gloo processes: the weights and the score of one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp

from rca_lightning import AffinityModule, FeatureCacheCallback, WSSSDataModule
from rca_lightning.callbacks import feature_cache
from tests.distributed.launching import free_port
from tests.quiet_trainer import quiet_trainer

TRAIN, VAL, BATCH, EPOCHS = 13, 3, 4, 3  # photographs; of all processes together


def _fit(rank: int, processes: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    feature_cache._SAMPLE = 3  # of the processes of this test alone
    os.environ["MASTER_PORT"] = str(port)
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    L.seed_everything(1, verbose=False)
    data = WSSSDataModule(
        "synthetic", folder.parent / "photographs", synthetic_train_images=TRAIN, synthetic_val_images=VAL,
        synthetic_image_size=48, batch_size=BATCH // processes, num_workers=0, crop_size=32,
    )  # fmt: skip
    # A small network and rate: rounding grows with every step.
    module = AffinityModule(6, data.class_names, backbone="resnet14", weights="none", radius=3, lr=0.01)
    cluster = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    cache = FeatureCacheCallback(str(folder / "features"))
    trainer = quiet_trainer(folder, max_epochs=EPOCHS, num_sanity_val_steps=0, callbacks=[cache], **cluster)
    trainer.fit(module, data)
    torch.save({"weights": module.state_dict(), "score": module.last_loss}, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process, and each of two, ended with."""
    root, states = tmp_path_factory.mktemp("affinity"), []
    for processes in (1, 2):
        folder = root / str(processes)
        mp.start_processes(_fit, args=(processes, free_port(), folder), nprocs=processes, start_method="fork")
        states += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    return states


def test_ranks_agree_bit_for_bit(states):
    _, first, second = states
    assert first["score"] == second["score"]
    for name, value in first["weights"].items():
        assert torch.equal(second["weights"][name], value), name


def test_weights_and_score_are_those_of_one_process(states):
    one, *ranks = states
    for rank in ranks:
        assert rank["score"] == pytest.approx(one["score"], rel=1e-4)
        for name, value in one["weights"].items():
            torch.testing.assert_close(rank["weights"][name], value, rtol=1e-3, atol=1e-4, msg=name)
