"""Checkpoints are whole or not there."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tests.quiet_trainer import quiet_trainer

from rca_lightning.checkpoints import writing as atomic_io
from rca_lightning.checkpoints.writing import AtomicCheckpointIO
from rca_lightning.io.atomic import remove_leftovers, write_atomically

PLAIN = {"state_dict": {}, "pytorch-lightning_version": "2.6"}


def saved(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(PLAIN, path)
    return path


def test_trainer_writes_beside_the_place_syncs_and_renames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events, real_sync, real_replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append("sync"), real_sync(handle)))
    monkeypatch.setattr(
        Path, "replace", lambda one, other: (events.append((one.parent, one.suffix, other)), real_replace(one, other))
    )
    run = quiet_trainer(tmp_path, plugins=[AtomicCheckpointIO()])
    run.strategy.checkpoint_io.save_checkpoint(PLAIN, tmp_path / "a" / "x.ckpt")
    assert events == ["sync", (tmp_path / "a", ".part", tmp_path / "a" / "x.ckpt"), "sync"]
    assert run.strategy.load_checkpoint(tmp_path / "a" / "x.ckpt", weights_only=True) == PLAIN


def test_failed_writing_keeps_the_former_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = saved(tmp_path / "last.ckpt")
    before = path.read_bytes()

    def full(content: object, file: object) -> None:
        file.write(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(atomic_io.torch, "save", full)
    with pytest.raises(OSError, match="disk full"):
        AtomicCheckpointIO().save_checkpoint(PLAIN, path)
    assert path.read_bytes() == before
    assert [one.name for one in tmp_path.iterdir()] == ["last.ckpt"]
    with pytest.raises(TypeError, match="storage_options"):
        AtomicCheckpointIO().save_checkpoint(PLAIN, path, storage_options={})


def test_leftovers_of_one_name_only_are_removed(tmp_path: Path):
    names = [".last.abcd_123.part", ".last.x.part", ".last-v1.abcd_123.part", "last.ckpt", ".[a].abcd_123.part"]
    for name in names:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path / "last.ckpt")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[1:])
    remove_leftovers(tmp_path / "[a].ckpt")
    assert not (tmp_path / names[4]).exists()

    def look(file: object) -> None:
        remove_leftovers(tmp_path / "new.ckpt")  # as what is left by a kill in just this moment
        assert not list(tmp_path.glob(".new*"))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "new.ckpt", look)
