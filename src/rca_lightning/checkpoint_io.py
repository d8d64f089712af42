"""Checkpoints that are whole or not there, whenever the process or the machine dies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rca_lightning.atomic import remove_leftovers, write_atomically


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its final place, waits until it is on the disk, then renames it.

    Lightning's own way collects the file in memory and then in the temporary folder of the system; where that is on
    another disk the last move is a copy, which a kill leaves half done. The command line uses this class by itself;
    in a notebook give it to the Trainer. A path with `://` goes Lightning's way.

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
            OSError: from the file system; an older checkpoint at `path` then stays as it was.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        remove_leftovers(Path(path))
        write_atomically(Path(path), lambda file: torch.save(checkpoint, file), durable=True)
