"""Draws the prototype atlas when training ends."""

from __future__ import annotations

import logging
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from rca_lightning.arguments import check_arguments
from rca_lightning.atlas.atlas import BACKGROUND, make_atlas
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.data.dataset import CachedFeatures, TaggedImages
from rca_lightning.errors import ArgumentError, RCAError
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.memory_bank import RegionMemory

logger = logging.getLogger(__name__)


class PrototypeAtlasCallback(L.Callback):
    """At the end of training, draws for every prototype the remembered regions it stands for; see `make_atlas`.

    The first rank draws alone, from its own copy of the memory; nothing is exchanged between ranks, and the others
    wait where they next meet. Drawing takes about as long as validating on the images that are shown. What goes
    wrong in it is logged and does not end the run: `rca atlas` draws the same from a checkpoint.

    Args:
        folder: where to write; default `atlas` in the run's log folder. What is there is replaced.
        regions: crops a prototype, from different images.

    Raises:
        ArgumentError: if `regions` is below 1; when training starts, if there is no memory to draw, or the images
            are no `TaggedImages`, as those of `WSSSDataModule` are.

    Example:
        >>> import lightning as L
        >>> callbacks = [RegionMemoryCallback(), PrototypeAtlasCallback(regions=4)]
        >>> trainer = L.Trainer(callbacks=callbacks, logger=False, accelerator="cpu")
    """

    task = (RCAModule.task, OneStageModule.task)

    @check_arguments
    def __init__(self, folder: str | None = None, regions: int = 6) -> None:
        if regions < 1:
            raise ArgumentError("regions", regions, "give at least 1, or leave the callback out")
        self.folder = folder
        self.regions = regions

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Refuse at the start a run whose atlas could not be drawn at the end."""
        _parts(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Draw; in `on_fit_end` the module has left its device."""
        # Lightning broadcasts `log_dir`: every rank must ask for it.
        folder = Path(self.folder or Path(trainer.log_dir or trainer.default_root_dir) / "atlas")
        if not trainer.is_global_zero:
            return
        # An error on one rank would leave the others waiting, and the last checkpoint unwritten.
        try:
            module, memory, images = _parts(trainer, pl_module)
            measured = _measured(trainer, module)
            make_atlas(module, memory, images, folder, regions=self.regions, diagnostics=measured)
        except (RCAError, OSError) as error:
            logger.error("prototype atlas: not drawn, %s", error)
        except Exception:
            logger.exception("prototype atlas: not drawn")


def _parts(trainer: L.Trainer, module: L.LightningModule) -> tuple[RCAModule, RegionMemory, TaggedImages]:
    owner = _owner(trainer)
    if not isinstance(module, RCAModule) or owner is None or owner.memory is None:
        remedy = "there is no region memory to draw; train with contrast or aggregation"
        raise ArgumentError("callbacks", "PrototypeAtlasCallback", remedy)
    loader = trainer.train_dataloader
    images = loader.dataset if isinstance(loader, DataLoader) else None
    images = images.images if isinstance(images, CachedFeatures) else images
    if not isinstance(images, TaggedImages):
        remedy = "it finds photographs by their id in WSSSDataModule; train with that"
        raise ArgumentError("callbacks", "PrototypeAtlasCallback", remedy)
    return module, owner.memory, images


def _owner(trainer: L.Trainer) -> RegionMemoryCallback | None:
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return next((callback for callback in callbacks if isinstance(callback, RegionMemoryCallback)), None)


def _measured(trainer: L.Trainer, module: RCAModule) -> dict[str, dict[str, float | None]]:
    """Diagnostics of the last clustering, and scores by class of the last validation, where there was one."""
    owner, result = _owner(trainer), module.evaluation.last_result
    measured: dict[str, dict[str, float | None]] = {name: {} for name in [BACKGROUND, *module.class_names]}
    for name, numbers in (owner.diagnostics if owner else {}).items():
        measured[name].update(numbers)
    if result is not None:
        for numbers, iou in zip(measured.values(), result.iou.tolist(), strict=True):
            numbers["seed IoU"] = iou
    return measured
