"""The callback that owns the region memory and turns it into prototypes (RCA, sections 3.3 and 3.4)."""

from __future__ import annotations

import itertools
import logging
import math
import os
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.arguments import check_arguments
from rca_lightning.checkpoints.compatibility import OnMismatch
from rca_lightning.clustering.cluster import REMOVED_METHODS, ClusteringBackend, ClusteringMethod, check_method
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.distributed import broadcast_from_first, gather_objects, gather_uneven, world_size_and_rank
from rca_lightning.errors import ArgumentError, WeightsError, refuse_removed, require_extra
from rca_lightning.modules.logger_tables import log_table
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.diagnostics import advise_on_empty, diagnose
from rca_lightning.rca.label_change import LabelChange
from rca_lightning.rca.memory_bank import REMOVED, Placement, RegionMemory, StoredType, encode_ids
from rca_lightning.rca.prototype_contrast import CELLS, contrast_prototypes
from rca_lightning.rca.prototypes import Prototypes, make_prototypes
from rca_lightning.rca.regions import BACKGROUND_TILES, Regions

logger = logging.getLogger(__name__)

_SLOTS = 100
_ROUND_BYTES = 2**30  # of the memory of a round, in float32
_log_once = rank_zero_only(logger.info)


class RegionMemoryCallback(L.Callback):
    """Keeps regions of the whole dataset, clusters them each epoch, writes the module's prototypes.

    Every training step the regions of all ranks enter the memory, in the order of the images in the batch that a single
    process would have: the memory is the same on every rank, bit for bit, and does not depend on their number. After
    the last batch of the warm-up and of each later epoch rank 0 runs k-means and broadcasts the prototypes. The memory
    is part of the checkpoint.

    Behind a frozen backbone `train/label_change` is the share of cells of the training photographs whose label differs
    from the epoch before, 1 in the first; Lightning's `EarlyStopping` can monitor it. Labels are read from the maps
    that regions are cut from; see `cell_labels`. The last ones are part of the checkpoint, a byte a cell.

    Args:
        slots: regions N a class. More than two epochs of them keep regions of a network that has moved on. none: 100.
            Behind a frozen backbone the memory holds the regions of one epoch and begins anew with the next; none: as
            many as that may be, up to 1 GiB in all.
        clustering: "kmeans", "spherical" (k-means by cosine) or "sinkhorn" (clusters of like size); see `cluster`.
        backend: of k-means: "faiss", "torch", or "auto" for FAISS where it can run on the device of the module.
        iterations: steps of the clustering.
        regions_per_prototype: a class of few regions gets one prototype for so many, up to K; none: K for all.
        drop_below: probability of its own class, by the first CAM head, under which a prototype is left out;
            none: never.
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

    task = (RCAModule.task, OneStageModule.task)
    logged_prefixes = ("memory/", "prototypes/")

    @refuse_removed(
        **REMOVED,
        restarts="gone since 0.2; greedy k-means++ seeds make one run enough",
        warm_start="gone since 0.2; every clustering starts from k-means++ seeds",
        reseed="gone since 0.2; clustering='sinkhorn' gives every prototype regions",
        merge_above="gone since 0.2; regions_per_prototype or fewer prototypes (num_prototypes) keep them apart",
        concentration="gone since 0.2; all prototypes have the attention_temperature of the model",
    )
    @check_arguments(gone=REMOVED_METHODS)
    def __init__(
        self,
        slots: int | None = None,
        clustering: ClusteringMethod = "kmeans",
        backend: ClusteringBackend = "auto",
        iterations: int = 20,
        regions_per_prototype: int | None = None,
        drop_below: float | None = None,
        seed: int = 0,
        placement: Placement = "device",
        dtype: StoredType = "float32",
        on_mismatch: OnMismatch = "refuse",
    ) -> None:
        # Wrong arguments now, not after the data is read.
        RegionMemory(1, 1 if slots is None else slots, 1, placement=placement, dtype=dtype)
        check_method(clustering, backend)
        if iterations < 1:
            raise ArgumentError("iterations", iterations, "give at least 1")
        if regions_per_prototype is not None and regions_per_prototype < 1:
            raise ArgumentError("regions_per_prototype", regions_per_prototype, "give at least 1, or null")
        if drop_below is not None and not 0 <= drop_below <= 1:
            raise ArgumentError("drop_below", drop_below, "give a probability in [0, 1], or null")
        self.slots = slots
        self.clustering: ClusteringMethod = clustering
        self.backend: ClusteringBackend = backend
        self.iterations = iterations
        self.regions_per_prototype = regions_per_prototype
        self.drop_below = drop_below
        self.seed = seed
        self.placement: Placement = placement
        self.dtype: StoredType = dtype
        self.on_mismatch: OnMismatch = on_mismatch
        self.memory: RegionMemory | None = None
        self.diagnostics: dict[str, dict[str, int | float | None]] = {}
        self._cells: list[tuple[Tensor, Tensor]] = []  # of the round, on the first rank: float16 (M, D) and labels (M,)
        self._change = LabelChange()
        self._restored: dict[str, Any] | None = None
        self._logged_backend = False
        self._advised = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Build the memory for this module."""
        if stage == "fit":  # a checkpoint that was validated or predicted with is not one to go on from
            self._restored, self.diagnostics, self._advised = None, {}, False
            self._cells.clear()
            self._change = LabelChange()
        if stage != "fit" or not isinstance(pl_module, RCAModule) or not pl_module.needs_memory:
            return
        pl_module.on_mismatch = self.on_mismatch
        if self.backend == "faiss":
            require_extra("faiss", extra="cpu", needed_for="k-means with backend='faiss'")
        if self.drop_below is not None and pl_module.network.projection is not None:
            raise ArgumentError("drop_below", self.drop_below, "leave it out: no head scores projected embeddings")
        data = getattr(trainer, "datamodule", None)
        if pl_module.reads_seeds and isinstance(data, WSSSDataModule):
            data.open_seeds()
        slots = self.slots or (_slots_of_a_round(trainer, pl_module) if pl_module.is_frozen else _SLOTS)
        sizes = (pl_module.memory_classes, slots, pl_module.embedding_dim)
        self._log_size(sizes, trainer.strategy.root_device)  # first: a process killed for its memory says nothing
        self.memory = RegionMemory(*sizes, placement=self.placement, dtype=self.dtype)
        pl_module.memory = self.memory
        if pl_module.contrasts_prototypes:
            pl_module.cells_per_class = _cells_of_a_view(trainer, pl_module)

    @rank_zero_only
    def _log_size(self, sizes: tuple[int, int, int], device: torch.device) -> None:
        home = device if self.placement == "device" else torch.device("cpu")
        size = sizes[0] * sizes[1] * sizes[2] * getattr(torch, self.dtype).itemsize
        logger.info("region memory: %d classes x %d slots x %d channels, %s: %.1f MiB on %s", *sizes, self.dtype,
                    size / 2**20, home)  # fmt: skip
        if size > _total_bytes(home) / 4:
            remedies = (
                "--memory.placement host, --memory.dtype float16, a small --model.embedding_dim, fewer --memory.slots"
            )
            logger.warning("the region memory takes more than a quarter of %s. Remedies: %s", home, remedies)

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
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Warn of a training that ends before its first clustering."""
        dry_run = trainer.fast_dev_run  # type: ignore[attr-defined]
        if not isinstance(pl_module, RCAModule) or pl_module.network.aggregation is None or dry_run:
            return
        warmup = pl_module.hparams["warmup_epochs"]
        epochs = max(1, warmup)
        steps = epochs * trainer.num_training_batches / trainer.accumulate_grad_batches
        for name, most, needed in (("max_epochs", trainer.max_epochs, epochs), ("max_steps", trainer.max_steps, steps)):
            if most is not None and 0 <= most < needed < float("inf"):
                logger.warning(
                    "%s=%d: training ends before the first clustering, so no class gets a prototype; give %d or more, "
                    "or a smaller warmup_epochs (%d)",
                    name,
                    most,
                    math.ceil(needed),
                    warmup,
                )

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Begin a round behind a frozen backbone with an empty memory; add the seeds that regions are cut from."""
        if batch_idx == 0 and self.memory is not None and isinstance(pl_module, RCAModule) and pl_module.is_frozen:
            self.memory.clear()
            self._cells.clear()
            self._change.begin_round()
        data = getattr(trainer, "datamodule", None)
        seeds = getattr(data, "seed_maps", None)
        if seeds is None or not isinstance(pl_module, RCAModule):
            return
        if getattr(data, "seed_rounds", None) == "all" or pl_module.cuts_from_cam:
            batch["seeds"] = [seeds.read(image_id) for image_id in batch["image_id"]]

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Enqueue the regions of this step from every rank; after the last one of an epoch, cluster."""
        if self.memory is None or not isinstance(pl_module, RCAModule):
            return
        regions: Regions = outputs["regions"]
        ids = encode_ids(outputs["image_id"]).to(regions.labels.device)[regions.images]
        embeddings, labels, ids = _gather_in_order(regions, regions.embeddings.float(), regions.labels, ids)
        self.memory.enqueue(embeddings, labels, ids, trainer.global_step)
        if "cells" in outputs:
            cells: Regions = outputs["cells"]
            embeddings, labels = _gather_in_order(cells, F.normalize(cells.embeddings, dim=1), cells.labels)
            if world_size_and_rank()[1] == 0:
                self._cells.append((embeddings.half().cpu(), labels.cpu()))
        # Here and not at the end of the epoch, where validation has already run.
        done = trainer.current_epoch + 1
        if trainer.is_last_batch and done >= pl_module.hparams["warmup_epochs"]:
            self._renew_prototypes(self.memory, pl_module, done)
        if pl_module.is_frozen:
            for image_id, labels in itertools.chain.from_iterable(gather_objects(outputs["labels"])):
                self._change.add(image_id, labels)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log the share of cells that have changed their label; every rank has the same."""
        if self.memory is None or not isinstance(pl_module, RCAModule) or not pl_module.is_frozen:
            return
        share = self._change.share
        pl_module.log("train/label_change", share, on_step=False, on_epoch=True, batch_size=1)
        if trainer.current_epoch > 0:
            _log_once("epoch %d: %.1f %% of the cells changed their label", trainer.current_epoch + 1, 100 * share)

    def _renew_prototypes(self, memory: RegionMemory, module: RCAModule, epoch: int) -> None:
        """Cluster and contrast on rank 0, write the prototypes into the module on every rank."""
        reader = module.network.aggregation
        if reader is None:
            return
        prototypes = torch.zeros_like(reader.prototypes)
        valid = torch.zeros_like(reader.valid, dtype=torch.uint8)
        if world_size_and_rank()[1] == 0:
            parts = self._cluster(memory, module, self.seed + epoch)
            prototypes.copy_(torch.cat([part.vectors.flatten(0, 1) for part in parts]))  # (C, K, D) -> (Q, D)
            valid.copy_(torch.cat([part.valid.flatten() for part in parts]))
            self._report(memory, module, parts[0])
            if self._cells:
                self._contrast(module, reader, prototypes, valid, self.seed + epoch)
        self._cells.clear()
        broadcast_from_first(prototypes, valid)
        reader.write(prototypes, valid.bool())

    def _contrast(
        self, module: RCAModule, reader: SemanticAggregation, prototypes: Tensor, valid: Tensor, seed: int
    ) -> None:
        """Train prototypes with the cells of the round, in place: where a class had some, those go on."""
        had = torch.zeros(len(reader.prototypes_per_class), dtype=torch.bool, device=valid.device)
        goes_on = had.index_fill(0, reader.labels[reader.valid], True)[reader.labels]  # (Q,)
        prototypes.copy_(torch.where(goes_on[:, None], reader.prototypes, prototypes))
        valid.copy_(torch.where(goes_on, reader.valid, valid.bool()))
        used = valid.bool()
        embeddings, labels = (torch.cat(parts) for parts in zip(*self._cells, strict=True))
        moved, loss = contrast_prototypes(
            prototypes[used], reader.labels[used], embeddings, labels, temperature=reader.temperature, seed=seed
        )
        prototypes[used] = moved.to(prototypes.dtype)
        module.log("prototypes/contrast_loss", loss, on_step=False, on_epoch=True, batch_size=1, rank_zero_only=True)

    def _cluster(self, memory: RegionMemory, module: RCAModule, seed: int) -> list[Prototypes]:
        """Prototypes of the classes and, where it has some, of the background."""
        count = int(module.hparams["num_classes"])
        options: dict[str, Any] = {
            "backend": self.backend,
            "iterations": self.iterations,
            "seed": seed,
            "device": module.device,
        }
        # The background has several regions an image; the slots of classes are then mostly empty.
        used = slice(int(memory.counts[:count].max().clamp_min(1))) if module.is_frozen else slice(None)
        classes = make_prototypes(
            memory.embeddings[:count, used],
            memory.valid[:count, used],
            int(module.hparams["num_prototypes"]),
            clustering=self.clustering,
            regions_per_prototype=self.regions_per_prototype,
            drop_below=self.drop_below,
            score=module.network.prototype_scores,
            **options,
        )
        number = int(module.hparams["background_prototypes"])
        if not number:
            return [classes]
        # Plain k-means: no CAM head scores the background.
        points, valid = memory.embeddings[count:], memory.valid[count:]
        return [classes, make_prototypes(points, valid, number, clustering="kmeans", **options)]

    def _report(self, memory: RegionMemory, module: RCAModule, classes: Prototypes) -> None:
        """Log diagnostics of the classes, and warn of what is amiss."""
        if not self._logged_backend:
            _log_once("clustering (%s) runs on %s", self.clustering, classes.clusters.backend)
            self._logged_backend = True
        names = module.class_names
        rows = slice(0, len(names))
        used = slice(classes.clusters.assignment.shape[1])
        ages = memory.ages(module.global_step)[rows, used]
        points, valid = memory.embeddings[rows, used], memory.valid[rows, used]
        measured = diagnose(points, valid, classes.clusters, ages, num_requested=classes.num_requested)
        self.diagnostics = measured.as_dict(names)
        covered = classes.valid.any(dim=1)
        confidence, contrast = module.hparams["confidence"], bool(module.hparams["contrast"])
        empty = advise_on_empty(memory.counts[rows], covered, names, confidence=confidence, contrast=contrast)
        # Behind a frozen backbone no round changes what there is to cluster, so the first says it all.
        if not (module.is_frozen and self._advised):
            for line in (*empty, *measured.warnings(names, confidence=confidence)):
                logger.warning("%s", line)
        self._advised = True
        values = {
            "memory/empty_classes": float((~covered).sum()),
            "memory/refused": float(memory.refused),
            **measured.logged("prototypes"),
        }
        module.log_dict(values, on_step=False, on_epoch=True, batch_size=1, rank_zero_only=True)
        columns = list(next(iter(self.diagnostics.values())))
        by_class = [[name, *of_class.values()] for name, of_class in self.diagnostics.items()]
        if module._trainer is not None:
            log_table(module._trainer, "prototypes/by_class", ["class", *columns], by_class)

    def state_dict(self) -> dict[str, Any]:
        """The memory, cells and labels of a round and the last diagnostics, as tensors and numbers."""
        if self.memory is None:
            return {}
        of_round: dict[str, Any] = {"cells": list(self._cells)} if self._cells else {}
        if self._change.labels:
            of_round["labels"] = self._change.state_dict()
        return {"memory": self.memory.state_dict(), "diagnostics": self.diagnostics, **of_round}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the memory of a checkpoint until fitting starts; validation and prediction have no use for it."""
        self._restored = state_dict.get("memory")
        self.diagnostics = state_dict.get("diagnostics", {})
        self._cells = [tuple(part) for part in state_dict.get("cells", [])]
        if "labels" in state_dict:
            self._change.load_state_dict(state_dict["labels"])


def _total_bytes(device: torch.device) -> float:
    """Memory of a CUDA device or of the host; infinite where nothing tells."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    if device.type == "cpu" and "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return float("inf")


def _gather_in_order(regions: Regions, *values: Tensor) -> list[Tensor]:
    """Rows of all ranks in the order of the images in the batch that a single process would have."""
    processes, rank = world_size_and_rank()
    # Image i of a process is image i * processes + rank of that batch.
    *gathered, order = gather_uneven(*values, regions.images * processes + rank)
    order = torch.argsort(order, stable=True)
    return [value[order] for value in gathered]


def _cells_of_a_view(trainer: L.Trainer, module: RCAModule) -> int:
    """Most cells of a class that a view gives in a round, so that all fit: an image has about three tags."""
    images = getattr(trainer.datamodule, "num_train_images", 0)  # type: ignore[attr-defined]
    per_cell = 2 * module.embedding_dim
    return max(1, min(CELLS, _ROUND_BYTES // (per_cell * max(1, 4 * images))))  # 4: with the background


def _slots_of_a_round(trainer: L.Trainer, module: RCAModule) -> int:
    """Most regions of a queue in one epoch behind a frozen backbone, as far as they fit."""
    images = getattr(trainer.datamodule, "num_train_images", 0)  # type: ignore[attr-defined]
    most = images * (BACKGROUND_TILES if module.hparams["background_prototypes"] else 1)
    room = _ROUND_BYTES // (4 * module.memory_classes * module.embedding_dim)
    return max(1, min(int(most), room))
