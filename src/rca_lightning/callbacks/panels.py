"""Panels of image, coarse map, final map and mask, as PNG files and for the logger."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import CombinedLoader, rank_zero_only
from lightning.pytorch.utilities.seed import isolate_rng
from PIL import Image

from rca_lightning.arguments import check_arguments
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.data.sample import Batch
from rca_lightning.data.visualization import Pixels, denormalise, draw_panel, overlay_maps, overlay_mask
from rca_lightning.errors import ArgumentError
from rca_lightning.io.atomic import output_errors, write_atomically
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.training_guards import evaluation_mode

logger = logging.getLogger(__name__)


class PanelCallback(L.Callback):
    """Draws the first validation images, a row each: image, `P`, final map, mask.

    In `fit` there is a panel every `every_n_epochs`: of the epoch's validation, or, where the epoch has none, of the
    same images at its end. In `validate` there is one. Each panel is a PNG in the run's folder
    (`epoch-<number>.png`, `validate.png`) and goes to TensorBoard and Weights & Biases where they are loggers of
    the run. An image without a mask is shown plain in the last column. Training takes the same course with and
    without panels.

    Args:
        images: how many images to draw, of those that the first rank validates.
        folder: where to write; default `panels` in the run's log folder.
        every_n_epochs: epochs from one panel to the next, counted like `check_val_every_n_epoch` of the Trainer: with
            5 the fifth epoch has the first panel.

    Raises:
        ArgumentError: if a number is below 1.

    Example:
        >>> import lightning as L
        >>> panels = PanelCallback(images=4, every_n_epochs=2)
        >>> trainer = L.Trainer(callbacks=[panels], check_val_every_n_epoch=10, logger=False, accelerator="cpu")
    """

    task = (RCAModule.task, OneStageModule.task)

    @check_arguments
    def __init__(self, images: int = 6, folder: str | None = None, every_n_epochs: int = 1) -> None:
        if images < 1:
            raise ArgumentError("images", images, "give at least 1, or leave the callback out")
        if every_n_epochs < 1:
            raise ArgumentError("every_n_epochs", every_n_epochs, "give at least 1, or leave the callback out")
        self.images = images
        self.folder = folder
        self.every_n_epochs = every_n_epochs
        self._rows: list[list[Pixels]] = []
        self._validated = False  # in this epoch, so its panel is drawn
        self._batches: list[Batch] | None = None  # for epochs without validation, read once in a run

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Drop the images of another run."""
        self._batches = None

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Note that this epoch has no panel yet."""
        self._validated = False

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
        if trainer.sanity_checking or not batch["image_id"]:  # or none of its images could be read
            return
        if isinstance(pl_module, RCAModule) and self._is_due(trainer):
            self._draw(pl_module, batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Write the panel."""
        self._validated = not trainer.sanity_checking
        self._write(trainer, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw and write the panel of an epoch that had no validation."""
        if self._validated or not isinstance(pl_module, RCAModule) or not self._is_due(trainer):
            return
        if self._batches is None:
            # Every rank asks for the loaders, which may need all of them; only the first reads.
            self._batches = _read(_validation_loaders(trainer), self.images) or []
        self._rows.clear()
        self._draw_kept(trainer, pl_module, self._batches)
        self._write(trainer, pl_module)

    on_fit_end = on_fit_start

    def _is_due(self, trainer: L.Trainer) -> bool:
        return trainer.state.fn != "fit" or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    @rank_zero_only
    def _draw_kept(self, trainer: L.Trainer, module: RCAModule, batches: list[Batch]) -> None:
        with evaluation_mode(module), torch.no_grad():
            for batch in batches:
                self._draw(module, trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(batch)))

    def _draw(self, module: RCAModule, batch: Batch) -> None:
        """Add a row for each image of the batch until there are enough."""
        images = batch["image"][: self.images - len(self._rows)]
        if not len(images):
            return
        tags = batch["tags"][: len(images)] if module.hparams["eval_tags"] == "image" else None
        coarse = module.seeds(images, tags, "coarse")
        final = module.seeds(images, tags)
        for index, (first, second) in enumerate(zip(coarse, final, strict=True)):
            image = denormalise(images[index])
            overlays = [overlay_maps(image, maps.maps, maps.classes) for maps in (first, second)]
            mask = batch["mask"][index] if "mask" in batch else torch.zeros(image.shape[:2])
            self._rows.append([image, *overlays, overlay_mask(image, mask.cpu().numpy().astype(np.uint8))])

    def _write(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        # Lightning broadcasts `log_dir`: every rank must ask for it, also one that has nothing to write.
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "panels")
        if not self._rows:
            return
        titles = ["image", "coarse map", f"final map ({module.hparams['final_map']})", "mask"]
        picture = draw_panel(self._rows, titles)
        name = f"epoch-{trainer.current_epoch:03d}.png" if trainer.state.fn == "fit" else "validate.png"
        with output_errors("folder", folder):
            write_atomically(folder / name, lambda file: Image.fromarray(picture).save(file, format="PNG"))
        for destination in trainer.loggers:
            if isinstance(destination, TensorBoardLogger):
                destination.experiment.add_image("val/panel", picture, trainer.global_step, dataformats="HWC")
            elif isinstance(destination, WandbLogger):
                destination.log_image("val/panel", [picture], step=trainer.global_step)


def _validation_loaders(trainer: L.Trainer) -> CombinedLoader | None:
    """All validation loaders in sequence; `None` if the run has none. To be called on every rank."""
    if not trainer.enable_validation:
        return None
    data = trainer.datamodule  # type: ignore[attr-defined]
    if data is not None:
        # Not the Trainer's loader: its processes would stay to the end, perhaps without ever validating.
        # Of ours also images without masks, whose validation is skipped: their maps can be looked at.
        ours = isinstance(data, WSSSDataModule)
        loaders = data.evaluation_dataloader() if ours else data.val_dataloader()
    else:
        # What was given to `fit` is known to the Trainer only once it has prepared validation.
        trainer.fit_loop.epoch_loop.val_loop.setup_data()
        loaders = trainer.val_dataloaders
    return loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "sequential")


@rank_zero_only
def _read(loaders: CombinedLoader | None, images: int) -> list[Batch]:
    """Batches until there are enough images."""
    batches: list[Batch] = []
    if loaders is None:
        logger.warning("PanelCallback has nothing to draw: this run has no validation images")
        return batches
    # A loader draws a seed for its processes, even if it has none, from the generator that training uses.
    with isolate_rng():
        for batch, *_ in loaders:
            if batch["image_id"]:  # else none of its images could be read
                batches.append(batch)
            if sum(len(kept["image"]) for kept in batches) >= images:
                break
    return batches
