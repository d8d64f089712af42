"""The callback that owns the region memory and turns it into prototypes."""

from __future__ import annotations

import logging
from functools import partial
from typing import Any, get_args

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from rca_lightning.checkpoints.compatibility import OnMismatch
from rca_lightning.clustering.cluster import ClusteringBackend, ClusteringMethod
from rca_lightning.distributed import broadcast_from_first, gather_uneven, world_size_and_rank
from rca_lightning.errors import ArgumentError, WeightsError, refuse_removed, require_extra
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.diagnostics import advise_on_empty, diagnose
from rca_lightning.rca.footprint import Footprint
from rca_lightning.rca.memory_bank import REMOVED, Placement, RegionMemory, StoredType, encode_ids
from rca_lightning.rca.prototypes import PrototypeMaker, Prototypes
from rca_lightning.rca.regions import Regions

logger = logging.getLogger(__name__)
_log_once = rank_zero_only(logger.info)


class RegionMemoryCallback(L.Callback):
    """Keeps regions of the whole dataset, clusters them each epoch, writes the module's prototypes.

    Every training step the regions of all ranks enter the memory, in the order of the images in the batch that a single
    process would have: the memory is the same on every rank, bit for bit, and does not depend on their number. After
    the last batch of the warm-up and of each later epoch rank 0 runs k-means and broadcasts the prototypes. The memory
    is part of the checkpoint.

    Args:
        slots: regions N a class. More than two epochs of them keep regions of a network that has moved on.
        clustering: "kmeans", "spherical", "sinkhorn" (clusters of like size), "gmm" or "farthest"; see `cluster`.
        backend: of k-means: "faiss", "torch", or "auto" for FAISS where it is installed.
        iterations: steps of the clustering.
        restarts: runs from other seeds, of which the best counts.
        warm_start: whether a clustering starts from the last prototypes, so that prototype k stays what it was.
        regions_per_prototype: a class of few regions gets one prototype for so many, up to K; none: K for all.
        reseed: place prototypes without a region where the class is covered worst.
        merge_above: cosine above which two prototypes of a class become one, and the freed one is placed where the
            class is covered worst; none: never.
        drop_below: probability of its own class, by the first CAM head, under which a prototype is left out;
            none: never.
        concentration: whether tight prototypes get a lower attention temperature than loose ones.
        seed: of the clustering; the epoch is added.
        placement: "device", or "host" for a memory too large for the GPU: pinned memory of the processor, of which
            every step of the contrast reads all slots over the bus, and clustering a few classes at a time.
        dtype: "float32", or "float16" for half the size; embeddings are then rounded to 3 decimal digits.
        on_mismatch: what to do when training goes on from a checkpoint whose memory has other classes, slots or
            channels, or whose prototypes are of another number: "refuse", or "rebuild": begin with an empty memory and
            no prototypes; the memory fills in the epoch that follows and is clustered at its end.

    Attributes:
        memory: the memory while fitting, else `None`.
        diagnostics: measures of each class at the last clustering, by name; see `Diagnostics`.

    Example:
        >>> import lightning as L
        >>> trainer = L.Trainer(callbacks=[RegionMemoryCallback(slots=200)], logger=False, accelerator="cpu")
    """

    task = RCAModule.task

    @refuse_removed(**REMOVED)
    def __init__(
        self,
        slots: int = 100,
        clustering: ClusteringMethod = "kmeans",
        backend: ClusteringBackend = "auto",
        iterations: int = 20,
        restarts: int = 1,
        warm_start: bool = False,
        regions_per_prototype: int | None = None,
        reseed: bool = False,
        merge_above: float | None = None,
        drop_below: float | None = None,
        concentration: bool = False,
        seed: int = 0,
        placement: Placement = "device",
        dtype: StoredType = "float32",
        on_mismatch: OnMismatch = "refuse",
    ) -> None:
        if on_mismatch not in get_args(OnMismatch):
            raise ArgumentError("on_mismatch", on_mismatch, f"give one of {', '.join(get_args(OnMismatch))}")
        self.on_mismatch: OnMismatch = on_mismatch
        self._make = partial(RegionMemory, slots=slots, placement=placement, dtype=dtype)
        self._make(1, dim=1)  # refuses wrong arguments now and not after the data is read
        self.slots = slots
        self.placement: Placement = placement
        self.dtype: StoredType = dtype
        self.maker = PrototypeMaker(
            clustering=clustering,
            backend=backend,
            iterations=iterations,
            restarts=restarts,
            warm_start=warm_start,
            regions_per_prototype=regions_per_prototype,
            reseed=reseed,
            merge_above=merge_above,
            drop_below=drop_below,
            concentration=concentration,
        )
        self.seed = seed
        self.memory: RegionMemory | None = None
        self.diagnostics: dict[str, dict[str, int | float | None]] = {}
        self._restored: dict[str, Any] | None = None
        self._logged_backend = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Build the memory for this module."""
        if stage == "fit":  # a checkpoint that was validated or predicted with is not one to go on from
            self._restored, self.diagnostics = None, {}
        if stage != "fit" or not isinstance(pl_module, RCAModule) or not pl_module.needs_memory:
            return
        pl_module.on_mismatch = self.on_mismatch
        if self.maker.backend == "faiss":
            require_extra("faiss", extra="cpu", needed_for="k-means with backend='faiss'")
        if self.maker.drop_below is not None and pl_module.network.projection is not None:
            raise ArgumentError(
                "drop_below", self.maker.drop_below, "leave it out: no head scores projected embeddings"
            )
        # Before it is made: a process that is killed for its memory says nothing any more.
        self._tell_size(trainer, pl_module)
        self.memory = self._make(pl_module.memory_classes, dim=pl_module.embedding_dim)
        pl_module.memory = self.memory

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the memory to the device of the module, with what the checkpoint held."""
        if self.memory is None:
            return
        if self._restored is not None:
            self._restore(self.memory, pl_module, self._restored)
            self._restored = None
        self.memory.to(pl_module.device)

    def _restore(self, memory: RegionMemory, module: L.LightningModule, state: dict[str, Any]) -> None:
        others = memory.differences(state)
        if not others:
            memory.load_state_dict(state)
            return
        if self.on_mismatch == "refuse":
            raise WeightsError(
                f"the memory in the checkpoint does not fit this run: {'; '.join(others)}. Make them equal, or let it "
                "begin empty: --memory.on_mismatch rebuild"
            )
        _log_once("the memory begins empty (on_mismatch=rebuild): %s", "; ".join(others))
        self.diagnostics = {}
        reader = module.network.aggregation if isinstance(module, RCAModule) else None
        if reader is not None:
            reader.write(torch.zeros_like(reader.prototypes), torch.zeros_like(reader.valid))

    @rank_zero_only
    def _tell_size(self, trainer: L.Trainer, module: RCAModule) -> None:
        size = Footprint(
            num_classes=module.memory_classes,
            slots=self.slots,
            dim=module.embedding_dim,
            dtype=self.dtype,
            placement=self.placement,
            device=trainer.strategy.root_device,
            processes=trainer.num_devices,
        )
        logger.info("%s", size)
        warning = size.warning()
        if warning:
            logger.warning("%s", warning)

    def _renew_prototypes(self, module: RCAModule, epoch: int) -> None:
        reader = module.network.aggregation
        if self.memory is None or reader is None:
            return
        prototypes = torch.zeros_like(reader.prototypes)
        valid = torch.zeros_like(reader.valid, dtype=torch.uint8)
        if world_size_and_rank()[1] == 0:
            parts = self._cluster(self.memory, module, epoch)
            prototypes.copy_(torch.cat([part.vectors.flatten(0, 1) for part in parts]))
            valid.copy_(torch.cat([part.valid.flatten() for part in parts]))
            self._report(self.memory, module, parts[0])
        broadcast_from_first(prototypes, valid)
        reader.write(prototypes, valid.bool())

    def _cluster(self, memory: RegionMemory, module: RCAModule, epoch: int) -> list[Prototypes]:
        """Prototypes of the classes and, where it has some, of the background."""
        count, reader = int(module.hparams["num_classes"]), module.network.aggregation
        assert reader is not None  # only called where prototypes are read
        parts = [
            self.maker(
                memory.embeddings[:count],
                memory.valid[:count],
                int(module.hparams["num_prototypes"]),
                seed=self.seed + epoch,
                last=reader.by_class(),
                score=module.network.prototype_scores,
                device=module.device,
            )
        ]
        if module.hparams["background_prototypes"]:
            rows, number = slice(count, None), int(module.hparams["background_prototypes"])
            points, valid = memory.embeddings[rows], memory.valid[rows]
            parts.append(self.maker.plain(points, valid, number, seed=self.seed + epoch, device=module.device))
        return parts

    def _report(self, memory: RegionMemory, module: RCAModule, classes: Prototypes) -> None:
        if not self._logged_backend:
            _log_once("clustering (%s) runs on %s", self.maker.clustering, classes.clusters.backend)
            self._logged_backend = True
        names = module.class_names
        empty = [names[index] for index in torch.nonzero(~classes.valid.any(dim=1))[:, 0].tolist()]
        for line in advise_on_empty(memory.counts[: len(names)], classes.valid.any(dim=1), names):
            logger.warning("%s", line)
        rows = slice(0, len(names))
        ages = memory.ages(module.global_step)[rows]
        points, valid = memory.embeddings[rows], memory.valid[rows]
        found = diagnose(points, valid, classes.clusters, ages, num_requested=classes.num_requested)
        self.diagnostics = found.as_dict(names)
        for warning in found.warnings(names):
            logger.warning("%s", warning)
        values = {
            "memory/empty_classes": float(len(empty)),
            "memory/refused": float(memory.refused),
            **found.logged("prototypes"),
        }
        module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, rank_zero_only=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take in the regions of this step from every rank; after the last one of an epoch, cluster."""
        if self.memory is None or not isinstance(pl_module, RCAModule):
            return
        regions: Regions = outputs["regions"]
        ids = encode_ids(outputs["image_id"]).to(regions.labels.device)[regions.images]
        processes, rank = world_size_and_rank()
        order = regions.images * processes + rank
        embeddings, labels, ids, order = gather_uneven(regions.embeddings.float(), regions.labels, ids, order)
        # Image i of a process is image i * processes + rank of the batch that a single process would have.
        order = torch.argsort(order, stable=True)
        self.memory.enqueue(embeddings[order], labels[order], ids[order], trainer.global_step)
        # Here and not at the end of the epoch, where validation has already run.
        done = trainer.current_epoch + 1
        if trainer.is_last_batch and done >= pl_module.hparams["warmup_epochs"]:
            self._renew_prototypes(pl_module, done)

    def state_dict(self) -> dict[str, Any]:
        """The memory and the last diagnostics, as tensors and numbers."""
        return {} if self.memory is None else {"memory": self.memory.state_dict(), "diagnostics": self.diagnostics}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the memory of a checkpoint until fitting starts; validation and prediction have no use for it."""
        self._restored = state_dict.get("memory")
        self.diagnostics = state_dict.get("diagnostics", {})
