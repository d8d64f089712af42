"""Callback that accumulates the maximum of the class maps over training."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.data.dataset import TaggedImages
from rca_lightning.data.sample import Batch
from rca_lightning.errors import ArgumentError, DataError
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.pseudo_labels.attention_store import AttentionStore, crop_maps_to_grids, grid_size
from rca_lightning.pseudo_labels.labels import check_count, check_share
from rca_lightning.rca.inference import ClassMaps

logger = logging.getLogger(__name__)
_log_once = rank_zero_only(logger.info)


class AttentionAccumulation(L.Callback):
    """Accumulates, for each training photograph and tag, the maximum of its maps over the epochs.

    The maximum covers parts of an object that were active at some time in training (Online Attention Accumulation,
    Jiang et al., ICCV 2019); see `AttentionStore`. The maps are those that the training steps compute anyway
    (`RCAModule.final_map`), of random crops, placed where the crop was cut from.

    A map is divided by its peak within the photograph and multiplied by the image probability of its class in that
    crop. Without the division the maximum would be that of the last epochs, as activations grow in training. The
    probability weakens the maps of crops that miss the object, and those of an untrained network.

    After the last batch of an epoch the ranks merge their maxima, so that every rank has the same store, bit for bit.
    It is part of the checkpoint, from which resumed training and prediction restore it.

    Args:
        cells: cells along the long side of a photograph; the maps of a photograph of 4:3 take 6 KiB a tag with 64.
        warmup_epochs: epochs at the start whose maps are left out.
        confidence: image probability of a class in a crop below which its map is left out.
        max_mib: room for all maps in MiB, in main memory of each rank; checkpoints grow by as much.

    Attributes:
        store: the maps; `None` before training or a checkpoint with maps.

    Raises:
        ArgumentError: an argument out of range; when training starts, maps that may not fit, or a module without maps.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[AttentionAccumulation(cells=32)], logger=False, accelerator="cpu")
    """

    task = (RCAModule.task, OneStageModule.task)

    @check_arguments
    def __init__(self, cells: int = 64, warmup_epochs: int = 1, confidence: float = 0.0, max_mib: float = 1024) -> None:
        AttentionStore(1, cells=cells, max_mib=max_mib)  # refuses wrong arguments now and not after the data is read
        check_count("warmup_epochs", warmup_epochs, least=0)
        check_share("confidence", confidence)
        self.cells = cells
        self.warmup_epochs = warmup_epochs
        self.confidence = confidence
        self.max_mib = max_mib
        self.store: AttentionStore | None = None
        self._merged = True

    @classmethod
    def of(cls, trainer: L.Trainer) -> AttentionAccumulation:
        """Finds the callback of a Trainer, for callbacks that read its maps in prediction.

        Raises:
            ArgumentError: if the Trainer has none, or it has no maps.
        """
        callbacks = trainer.callbacks  # type: ignore[attr-defined]
        accumulation = next((callback for callback in callbacks if isinstance(callback, cls)), None)
        if accumulation is None:
            raise ArgumentError("trainer.callbacks", None, f"add {cls.__name__}, as in training, to read its maps")
        if not accumulation.store:
            raise ArgumentError(
                "ckpt_path",
                None if trainer.ckpt_path is None else str(trainer.ckpt_path),
                f"no accumulated maps in it; train with {cls.__name__} for more epochs than its warmup_epochs",
            )
        return accumulation

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Makes an empty store; a checkpoint is loaded after."""
        if stage != "fit":
            return
        if not isinstance(pl_module, RCAModule):
            raise ArgumentError("model", type(pl_module).__name__, f"{type(self).__name__} takes the maps of RCAModule")
        if pl_module.is_frozen:
            remedy = "behind a frozen backbone maps do not change by training; leave it out"
            raise ArgumentError("trainer.callbacks", type(self).__name__, remedy)
        self.store = self._empty(int(pl_module.hparams["num_classes"]))
        self._merged = True

    def _empty(self, num_classes: int) -> AttentionStore:
        return AttentionStore(num_classes, cells=self.cells, max_mib=self.max_mib)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Logs the room that the maps may take; refuses data whose maps may not fit."""
        images = getattr(trainer.train_dataloader, "dataset", None)
        if self.store is None or not isinstance(images, TaggedImages):
            return  # the number of tags of other data is not known: the store refuses maps that do not fit
        maps = int(images.records.tag_counts.clip(0).sum())  # -1 where unknown
        self.store.check_room(maps)
        _log_once(
            "attention accumulation: %d images with %d tags, up to %.1f MiB in memory and in checkpoints (max_mib=%g)",
            *(len(images.records), maps, self.store.most_mib(maps), self.max_mib),
        )

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Adds the maps of this step; merges the ranks after the last step of an epoch."""
        if self.store is None or trainer.current_epoch < self.warmup_epochs:
            return
        if "skipped" not in outputs:
            self._add(self.store, outputs["maps"], outputs["probabilities"], batch)
        self._merged = False
        if trainer.is_last_batch:  # here, as validation and its checkpoints come before the end of the epoch
            self._merge(pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merges the ranks after an epoch that was cut short."""
        self._merge(pl_module)

    def _merge(self, module: L.LightningModule) -> None:
        if self.store is not None and not self._merged:
            self.store.merge_over_ranks(module.device)
        self._merged = True

    def _add(self, store: AttentionStore, maps: Tensor, probabilities: Tensor, batch: Batch) -> None:
        if "window" not in batch:
            raise DataError("the training batch has no 'window'; see Sample, or train with WSSSDataModule")
        images, classes = torch.nonzero(batch["tags"] > 0, as_tuple=True)  # (T,) each
        chances = probabilities[images, classes].float()
        chances = chances * (chances >= self.confidence)
        every_size = batch["original_size"].tolist()
        rows, labels = images.tolist(), classes.tolist()
        sizes = [tuple(every_size[row]) for row in rows]
        crop = (batch["image"].shape[2], batch["image"].shape[3])
        placed = crop_maps_to_grids(maps[images, classes], batch["window"][images], sizes, crop=crop, cells=store.cells)
        placed = (placed * chances[:, None, None]).to(torch.float16).cpu()  # one transfer for all
        for row, label, size, one in zip(rows, labels, sizes, placed, strict=True):
            height, width = grid_size(size, store.cells)
            store.update(batch["image_id"][row], size, [label], one[None, :height, :width])

    def seeds(self, image_id: str, classes: Sequence[int] | Tensor, size: Sequence[int]) -> ClassMaps | None:
        """Reads the accumulated maps of a photograph, in place of those of the network.

        Args:
            image_id: its name.
            classes: `K` class indices, ascending.
            size: its height and width in pixels.

        Returns:
            `maps` `(K, H, W)`, each with maximum 1, or all 0 for a class that is no tag of the photograph;
            `probabilities` `(L,)`: the peak that a class has reached, which is its greatest probability in a crop.
            `None` for a photograph that was not trained on.

        Raises:
            DataError: if the photograph that was trained on under this name had another size.
        """
        if self.store is None:
            return None
        labels = torch.as_tensor(classes, dtype=torch.int64).cpu()
        maps = self.store.read(image_id, labels.tolist(), size)
        if maps is None:
            return None
        grids = (self.store.grid(image_id, label) for label in range(self.store.num_classes))
        peaks = [0.0 if grid is None else float(grid.max()) for grid in grids]
        return ClassMaps(maps, labels, torch.tensor(peaks))

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Merges the ranks before a checkpoint within an epoch, which one process writes for all."""
        if not self._merged:
            self._merge(pl_module)
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """The maps, as tensors and plain values."""
        return {} if self.store is None else {"store": self.store.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the maps of a checkpoint."""
        stored = state_dict.get("store")
        if stored is not None:
            self.store = self._empty(stored["num_classes"])
            self.store.load_state_dict(stored)
