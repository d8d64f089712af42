"""Panels of image, coarse map, final map and mask, for the eye and the logger."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from rca_lightning.atomic import write_atomically
from rca_lightning.data.sample import Batch
from rca_lightning.errors import ArgumentError
from rca_lightning.module import RCAModule
from rca_lightning.visualization import Pixels, denormalise, draw_panel, overlay_maps, overlay_mask


class PanelCallback(L.Callback):
    """Draws the first images of every validation: image, `P`, final map, mask.

    Each panel is a PNG in the run's folder and goes to TensorBoard or Weights & Biases when one of them is the logger.

    Args:
        images: how many images to draw, on the first rank.
        folder: where to write; default `panels` in the run's log folder.
    """

    def __init__(self, images: int = 6, folder: str | None = None) -> None:
        if images < 1:
            raise ArgumentError("images", images, "give at least 1, or leave the callback out")
        self.images = images
        self.folder = folder
        self._rows: list[list[Pixels]] = []

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start a new panel."""
        self._rows.clear()

    @rank_zero_only
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the images of this batch until there are enough."""
        if trainer.sanity_checking or not isinstance(pl_module, RCAModule) or len(self._rows) >= self.images:
            return
        images = batch["image"][: self.images - len(self._rows)]
        tags = batch["tags"][: len(images)] if pl_module.hparams["eval_tags"] == "image" else None
        coarse = pl_module.seeds(images, tags, "coarse")
        final = pl_module.seeds(images, tags)
        for index, (first, second) in enumerate(zip(coarse, final, strict=True)):
            image = denormalise(images[index])
            row = [
                image,
                overlay_maps(image, first.maps, first.classes),
                overlay_maps(image, second.maps, second.classes),
            ]
            mask = batch["mask"][index] if "mask" in batch else torch.zeros(image.shape[:2])
            self._rows.append([*row, overlay_mask(image, mask.cpu().numpy().astype(np.uint8))])

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel."""
        # Lightning broadcasts `log_dir`: every rank must ask for it, also one that has nothing to write.
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "panels")
        if not self._rows:
            return
        assert isinstance(pl_module, RCAModule)
        picture = draw_panel(
            self._rows, ["image", "coarse map", f"final map ({pl_module.hparams['final_map']})", "mask"]
        )
        name = f"epoch-{trainer.current_epoch:03d}.png" if trainer.state.fn == "fit" else "validate.png"
        write_atomically(folder / name, lambda file: Image.fromarray(picture).save(file, format="PNG"))
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_image("val/panel", picture, trainer.global_step, dataformats="HWC")
            elif isinstance(logger, WandbLogger):
                logger.log_image("val/panel", [picture], step=trainer.global_step)
