"""What a checkpoint must hold for an atlas."""

from __future__ import annotations

import pytest
import torch

from rca_lightning.atlas.remembered import diagnostics_of, memory_of
from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory


def test_memory_comes_back_as_it_was(tmp_path):
    memory = RegionMemory(2, 3, 4)
    memory.enqueue(torch.eye(4)[:3], torch.tensor([0, 1, 1]), ["a", "b", "c"], step=5)
    path = tmp_path / "last.ckpt"
    state = {"memory": memory.state_dict(), "diagnostics": {"cat": {"dead": 1, "gain": None}}}
    callbacks = {"ModelCheckpoint{}": {"best_score": 1}, "Memory": state}
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "callbacks": callbacks}, path)
    found = memory_of(read_checkpoint(path), path)
    assert diagnostics_of(read_checkpoint(path)) == {"cat": {"dead": 1, "gain": None}}
    assert torch.equal(found.embeddings, memory.embeddings)
    assert [found.image_id(1, slot) for slot in (0, 1)] == ["b", "c"]
    assert found.steps.tolist() == memory.steps.tolist()


@pytest.mark.parametrize("callbacks", [{}, {"RegionMemoryCallback": {}}, {"Other": {"kept": 1}}])
def test_plain_cam_is_told_what_to_train_with(tmp_path, callbacks):
    path = tmp_path / "cam.ckpt"
    torch.save({"state_dict": {}, "pytorch-lightning_version": "2.6.0", "callbacks": callbacks}, path)
    with pytest.raises(ArgumentError, match=r"cam\.ckpt.*contrast or aggregation"):
        memory_of(read_checkpoint(path), path)
