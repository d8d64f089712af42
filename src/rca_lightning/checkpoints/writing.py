"""Atomic writing of checkpoints: a kill or a full disk leaves the one before as it was."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from rca_lightning.io.atomic import output_errors, remove_leftovers, write_atomically

_WRITES_ONE_FILE = (SingleDeviceStrategy, DDPStrategy)  # others write folders, with means of their own


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint to a temporary file beside its path, syncs it to the disk, then renames it.

    Lightning moves it from the folder of temporary files; from another file system that is a copy, which a kill or a
    full disk leaves half done. The command line uses this plugin unless it is given another; in Python give it to the
    Trainer. A path with `://` is left to Lightning.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(plugins=[AtomicCheckpointIO()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Writes a checkpoint, after removing what a killed process has left of one of this name.

        Args:
            checkpoint: its content.
            path: the file; its folder is made if missing.
            storage_options: not for local files.

        Raises:
            TypeError: for `storage_options`.
            OutputError: if the file cannot be written; an older checkpoint at `path` then stays as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # Not straight into the file: where that is cut short the zip writer has an error of its own.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with output_errors("checkpoint", path, "what was saved before is as it was; make room, or give another folder"):
            remove_leftovers(Path(path))
            write_atomically(Path(path), lambda file: file.write(content.getbuffer()), durable=True)


def writes_one_file(trainer: L.Trainer) -> bool:
    """Whether a checkpoint of this Trainer is a file; strategies that shard the network write folders."""
    return isinstance(trainer.strategy, _WRITES_ONE_FILE)


def write_checkpoints_whole(trainer: L.Trainer) -> None:
    """Sets `AtomicCheckpointIO` on a Trainer that writes single files with Lightning's own plugin."""
    strategy = trainer.strategy
    if writes_one_file(trainer) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
