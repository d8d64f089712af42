"""FrozenSegmentationModule on two gloo processes: the classifier and the score of one process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.multiprocessing as mp
from lightning.pytorch.callbacks import ModelCheckpoint

from rca_lightning import FeatureCacheCallback, FrozenSegmentationModule, RCAModule, WSSSDataModule
from tests.distributed.launching import free_port
from tests.quiet_trainer import quiet_trainer

TRAIN, VAL, BATCH, EPOCHS = 13, 3, 4, 2  # photographs, an odd number; of all processes together


def _first_stage(path: Path) -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"backbone": "resnet14", "weights": "none", "backbone_mode": "frozen"}
    module = RCAModule(6, **options, embedding_dim=16, contrast=False, aggregation=False)
    trainer = quiet_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)


def _fit(rank: int, processes: int, port: int, folder: Path, ckpt_path: Path | None = None) -> None:
    torch.set_num_threads(1)
    os.environ["MASTER_PORT"] = str(port)
    if processes > 1:
        os.environ.update(LOCAL_RANK=str(rank), WORLD_SIZE=str(processes))
    L.seed_everything(1, verbose=False)
    data = WSSSDataModule(
        "synthetic", folder.parent / "photographs", synthetic_train_images=TRAIN, synthetic_val_images=VAL,
        synthetic_image_size=48, batch_size=BATCH // processes, num_workers=0,
    )  # fmt: skip
    module = FrozenSegmentationModule(6, data.class_names, first_stage=str(folder.parent / "first.ckpt"))
    cluster = {"devices": processes, "strategy": "ddp" if processes > 1 else "auto"}
    cache = FeatureCacheCallback(str(folder / "features"))
    kept = ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1)
    parts = {"callbacks": [cache, kept], "enable_checkpointing": True}
    trainer = quiet_trainer(folder, max_epochs=EPOCHS, num_sanity_val_steps=0, **parts, **cluster)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    result = {
        "weights": module.state_dict(),
        "score": float(trainer.callback_metrics["val/miou"]),
        "cells": float(trainer.callback_metrics["train/cells"]),
    }
    torch.save(result, folder / f"{rank}.pt")


@pytest.fixture(scope="module")
def states(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process, and each of two, ended with, and each of two that went on within the last epoch."""
    root, states = tmp_path_factory.mktemp("frozen"), []
    _first_stage(root / "first.ckpt")
    for processes in (1, 2):
        folder = root / str(processes)
        folder.mkdir()
        mp.start_processes(_fit, args=(processes, free_port(), folder), nprocs=processes, start_method="fork")
        states += [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(processes)]
    folder, begun = root / "resumed", root / "2" / "epoch=1-step=6.ckpt"  # of 8 steps
    folder.mkdir()
    mp.start_processes(_fit, args=(2, free_port(), folder, begun), nprocs=2, start_method="fork")
    return states + [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


def test_ranks_agree_bit_for_bit(states):
    _, first, *others = states
    for other in others:
        assert first["score"] == other["score"]
        for name, value in first["weights"].items():
            assert torch.equal(other["weights"][name], value), name


def test_every_photograph_counts_once(states):
    assert [state["cells"] for state in states] == [TRAIN * 9] * 5


def test_classifier_and_score_are_those_of_one_process(states):
    one, *ranks = states
    assert one["weights"]["network.classifier.fitted"]
    for rank in ranks:
        assert rank["score"] == pytest.approx(one["score"], rel=1e-3)
        for name in ("weight", "bias"):
            own, expected = (state["weights"][f"network.classifier.{name}"] for state in (rank, one))
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)
