"""Checkpoints that are whole or not there, also where the disk is full."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from rca_lightning.atomic import output_errors, write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final name and renames it.

    Lightning writes it into the folder of temporary files and moves it. From another file system that is a copy, and
    a disk that is full halfway leaves a damaged file where the checkpoint before it was. The command line uses this
    plugin unless it is given another; for a Trainer of one's own it is `Trainer(plugins=[AtomicCheckpointIO()])`.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a file on this machine; addresses of others are left to Lightning.

        Raises:
            OutputError: if the file cannot be written; one of that name stays as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        # Not straight into the file: where that is cut short the zip writer has an error of its own.
        content = io.BytesIO()
        torch.save(checkpoint, content)
        with output_errors("checkpoint", path, "what was saved before is as it was; make room, or give another folder"):
            write_atomically(Path(path), lambda file: file.write(content.getbuffer()))


def write_checkpoints_whole(trainer: L.Trainer) -> None:
    """Give a Trainer this plugin where it has the one of Lightning."""
    if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()
