"""Checkpoints that are whole or not there, also where the process is killed or the disk is full."""

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
    """Writes a checkpoint beside its final place, waits until it is on the disk, then renames it.

    Lightning writes it into the folder of temporary files and moves it. From another file system that is a copy, which
    a kill or a full disk leaves half done where the checkpoint before it was. The command line uses this plugin unless
    it is given another; in a notebook give it to the Trainer. A path with `://` goes Lightning's way.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(plugins=[AtomicCheckpointIO()], logger=False, accelerator="cpu")
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint; what a killed process has left of one of this name is removed first.

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


def write_checkpoints_whole(trainer: L.Trainer) -> None:
    """Give a Trainer this plugin where it writes single files by the one of Lightning."""
    strategy = trainer.strategy
    if isinstance(strategy, _WRITES_ONE_FILE) and type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = AtomicCheckpointIO()
