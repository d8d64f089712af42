"""The command `rca atlas`: draws the prototype atlas of a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path

import lightning as L

from rca_lightning.atlas.atlas import make_atlas
from rca_lightning.atlas.remembered import diagnostics_of, memory_of
from rca_lightning.checkpoints.reading import read_checkpoint
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.modules.rca_module import RCAModule


class AtlasTrainer(L.Trainer):
    """The Trainer of Lightning, with `atlas` beside `fit`, `validate`, `test` and `predict`."""

    def atlas(
        self,
        model: RCAModule,
        datamodule: WSSSDataModule,
        ckpt_path: str,
        folder: str | None = None,
        regions: int = 6,
    ) -> Path | None:
        """Draw the remembered regions that each prototype of a checkpoint stands for.

        See `make_atlas`. Runs in one process, on the first device of the Trainer.

        Args:
            model: built like the one of the checkpoint; takes its weights.
            datamodule: the data that the checkpoint was trained on.
            ckpt_path: checkpoint of a run with contrast or aggregation on.
            folder: where to write; default `atlas` in the log folder of this Trainer.
            regions: crops a prototype, from different images.

        Returns:
            Path of the index; `None` on any rank but the first.
        """
        target = Path(folder or Path(self.log_dir or self.default_root_dir) / "atlas")
        if not self.is_global_zero:
            return None
        checkpoint = read_checkpoint(ckpt_path)
        memory = memory_of(checkpoint, ckpt_path)
        model.on_load_checkpoint(checkpoint)
        model.load_state_dict(checkpoint["state_dict"])
        # Only training images are needed, so a data set without a validation split will do.
        self.limit_val_batches = 0
        datamodule.trainer = self
        datamodule.prepare_data()
        datamodule.setup("fit")
        images = datamodule.train_dataloader().dataset
        assert isinstance(images, TaggedImages)
        model.to(self.strategy.root_device)
        return make_atlas(
            model,
            memory,
            images,
            target,
            regions=regions,
            diagnostics=diagnostics_of(checkpoint),
            progress_bar=sys.stdout.isatty(),
        )
