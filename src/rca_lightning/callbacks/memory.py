"""The callback that owns the region memory and turns it into prototypes."""

from __future__ import annotations

import logging
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.distributed import broadcast_from_first, gather_uneven, is_distributed
from rca_lightning.errors import ArgumentError
from rca_lightning.memory.bank import RegionMemory
from rca_lightning.memory.clustering import ClusteringBackend, Clusters, kmeans
from rca_lightning.memory.diversity import between_class_cosine, effective_prototypes, within_class_cosine
from rca_lightning.memory.provenance import encode_ids
from rca_lightning.models.regions import Regions
from rca_lightning.module import RCAModule

logger = logging.getLogger(__name__)


class RegionMemoryCallback(L.Callback):
    """Keeps regions of the whole dataset, clusters them each epoch, writes the module's prototypes.

    Every training step the regions of all ranks enter the memory in rank order, so the memory is the
    same on every rank, bit for bit. After the last batch of the warm-up and of each later epoch rank 0 runs
    k-means and broadcasts the prototypes. The memory is part of the checkpoint.

    Args:
        slots: regions N a class. 500 holds a VOC class whole and costs 2 kB a slot at 512 channels.
        backend: of k-means: "faiss", "torch", or "auto" for FAISS where it is installed.
        iterations: Lloyd steps.
        seed: of the seeding; the epoch is added.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[RegionMemoryCallback(slots=200)], logger=False, accelerator="cpu")
    """

    def __init__(
        self, slots: int = 500, backend: ClusteringBackend = "auto", iterations: int = 20, seed: int = 0
    ) -> None:
        if slots < 1:
            raise ArgumentError("slots", slots, "give at least 1")
        self.slots = slots
        self.backend: ClusteringBackend = backend
        self.iterations = iterations
        self.seed = seed
        self.memory: RegionMemory | None = None
        self._restored: dict[str, Any] | None = None
        self._logged_backend = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Build the memory for this module."""
        if stage != "fit" or not isinstance(pl_module, RCAModule) or not pl_module.needs_memory:
            return
        self.memory = RegionMemory(pl_module.memory_classes, self.slots, pl_module.embedding_dim)
        pl_module.memory = self.memory

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the memory to the device of the module, with what the checkpoint held."""
        if self.memory is None:
            return
        if self._restored is not None:
            self.memory.load_state_dict(self._restored)
            self._restored = None
        self.memory.to(pl_module.device)
        _log_once("region memory: %d queues x %d slots x %d channels, %.0f MiB on %s", *_extent(self.memory))

    def _renew_prototypes(self, module: RCAModule, epoch: int) -> None:
        reader = module.network.aggregation
        if self.memory is None or reader is None:
            return
        prototypes, valid = torch.zeros_like(reader.prototypes), torch.zeros_like(reader.valid, dtype=torch.uint8)
        if not is_distributed() or torch.distributed.get_rank() == 0:
            found = self._cluster(self.memory, module, epoch)
            prototypes.copy_(found[0])
            valid.copy_(found[1])
        broadcast_from_first(prototypes, valid)
        reader.write(prototypes, valid.bool())

    def _cluster(self, memory: RegionMemory, module: RCAModule, epoch: int) -> tuple[Tensor, Tensor]:
        """Prototypes `(Q, D)`, unit length, and which are valid `(Q,)`."""
        count = int(module.hparams["num_classes"])
        sizes = [(slice(0, count), int(module.hparams["num_prototypes"]))]
        if module.hparams["background_prototypes"]:
            sizes.append((slice(count, None), int(module.hparams["background_prototypes"])))
        parts = []
        for rows, number in sizes:
            parts.append(
                kmeans(
                    memory.embeddings[rows],
                    number,
                    valid=memory.valid[rows],
                    iterations=self.iterations,
                    seed=self.seed + epoch,
                    backend=self.backend,
                )
            )
        self._report(memory, module, parts[0])
        # A mean of unit vectors is shorter than they are; attention compares directions.
        prototypes = torch.cat([F.normalize(part.centroids, dim=2).flatten(0, 1) for part in parts])
        return prototypes, torch.cat([part.valid.flatten() for part in parts])

    def _report(self, memory: RegionMemory, module: RCAModule, classes: Clusters) -> None:
        if not self._logged_backend:
            _log_once("k-means runs on %s", classes.backend)
            self._logged_backend = True
        empty = [module.class_names[index] for index in torch.nonzero(~classes.valid.any(dim=1))[:, 0].tolist()]
        if empty:
            _log_once("classes without a region in memory, so without a prototype: %s", ", ".join(empty))
        values = {
            "memory/fill": memory.valid.float().mean(),
            "memory/empty_classes": torch.tensor(float(len(empty))),
            "memory/refused": torch.tensor(float(memory.refused)),
            "prototypes/within_class_cosine": within_class_cosine(classes.centroids, classes.valid).nanmean(),
            "prototypes/between_class_cosine": between_class_cosine(classes.centroids, classes.valid),
            "prototypes/effective": effective_prototypes(classes.assignment, classes.centroids.shape[1]).mean(),
        }
        module.log_dict({name: value.cpu() for name, value in values.items()}, rank_zero_only=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the regions of this step from every rank; after the last one of an epoch, cluster."""
        if self.memory is None or not isinstance(pl_module, RCAModule):
            return
        regions: Regions = outputs["regions"]
        ids = encode_ids(outputs["image_id"]).to(regions.labels.device)[regions.images]
        embeddings, labels, ids = gather_uneven(regions.embeddings.float(), regions.labels, ids)
        self.memory.enqueue(embeddings, labels, ids, trainer.global_step)
        # Here and not at the end of the epoch, where validation has already run.
        done = trainer.current_epoch + 1
        if trainer.is_last_batch and done >= pl_module.hparams["warmup_epochs"]:
            self._renew_prototypes(pl_module, done)

    def state_dict(self) -> dict[str, Any]:
        """The memory, as tensors and numbers."""
        return {} if self.memory is None else {"memory": self.memory.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the memory of a checkpoint until fitting starts; validation and prediction have no use for it."""
        self._restored = state_dict.get("memory")


@rank_zero_only
def _log_once(message: str, *values: object) -> None:
    logger.info(message, *values)


def _extent(memory: RegionMemory) -> tuple[object, ...]:
    size = memory.embeddings.numel() * memory.embeddings.element_size() / 2**20
    return (*memory.embeddings.shape, size, memory.embeddings.device)
