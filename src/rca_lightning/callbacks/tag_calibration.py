"""Calibration of predicted tags at the end of a frozen fit, by cross-fitted heads and prototypes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from rca_lightning.data.dataset import CachedFeatures
from rca_lightning.distributed import broadcast_from_first, gather_uneven, world_size_and_rank
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.aggregation import SemanticAggregation
from rca_lightning.rca.cam import fit_head
from rca_lightning.rca.inference import seen_tags
from rca_lightning.rca.memory_bank import ID_BYTES, RegionMemory
from rca_lightning.rca.prototype_contrast import EPOCHS, contrast_prototypes
from rca_lightning.rca.prototypes import make_prototypes

_info = rank_zero_only(logging.getLogger(__name__).info)

FOLDS = 5
LEAST_IMAGES = 50
"""Photographs below which nothing is calibrated: there would be few of a class, if any, in a fold."""
_ITERATIONS = 20  # of k-means


def may_be_last_round(trainer: L.Trainer) -> bool:
    """Whether training ends with this epoch, or may: `EarlyStopping` decides after the other callbacks."""
    most_epochs, most_steps = trainer.max_epochs, trainer.max_steps
    by_epochs = most_epochs is not None and 0 <= most_epochs <= trainer.current_epoch + 1
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    unforeseen = trainer.should_stop or any(isinstance(callback, EarlyStopping) for callback in callbacks)
    return bool(unforeseen or by_epochs or 0 <= most_steps <= trainer.global_step)


@torch.no_grad()
def calibrate_tags(module: RCAModule, images: CachedFeatures, *, penalty: float) -> None:
    """Calibrates the image probabilities of a module behind a frozen backbone; every rank has to call it.

    Head and prototypes are fitted to the photographs that they are trained on, and read those too surely. So the
    photographs are cut into folds, and each is scored by a head and by prototypes that are fitted to the other folds:
    `fit_head`, and k-means of their regions and contrast with their cells, as the rounds do. `TagCalibration.fit` then
    compares these scores with the tags. No mask is read.

    Args:
        module: its head is fitted, and its prototypes, if it has any, are those of the last round.
        images: features of the photographs to train on. Below `LEAST_IMAGES` nothing is done.
        penalty: of the heads; see `fit_head`.
    """
    if len(images) < LEAST_IMAGES:
        return
    started = time.monotonic()
    means, tags, regions, cells = _gather(module, images)
    logits = torch.zeros_like(tags)
    if module.network.reads_prompts:  # which no photograph has taught
        logits = _head_logits(module, images)
    fold = torch.arange(len(images), device=tags.device) % FOLDS
    first = world_size_and_rank()[1] == 0
    for held_out in range(FOLDS if first and not module.network.reads_prompts else 0):
        others, own = fold != held_out, fold == held_out
        weight, bias = fit_head(means[others].cpu(), tags[others].cpu(), penalty=penalty)
        logits[own] = means[own] @ weight.to(means).T + bias.to(means)
    evidence = _held_out_evidence(module, images, regions, cells) if module.contrasts_prototypes else None
    if first:
        module.tag_calibration.fit(logits, evidence, tags)
    broadcast_from_first(*module.tag_calibration.state_dict().values())
    seconds = time.monotonic() - started
    _info("tags: calibrated on %d photographs in %d folds, in %.0f seconds", len(images), FOLDS, seconds)


def _head_logits(module: RCAModule, images: CachedFeatures) -> Tensor:
    """Image logits `(I, L)` of the first head."""
    found, rows = [torch.zeros(0, module.num_classes, device=module.device)], []
    for row, features, _ in _share(module, images, range(len(images))):
        found.append(seen_tags(module.network, [features], False)[0].mean(dim=0, keepdim=True))
        rows.append(row)
    gathered, order = gather_uneven(torch.cat(found), torch.tensor(rows, dtype=torch.int64, device=module.device))
    return gathered[torch.argsort(order)]


_Rows = tuple[Tensor, Tensor, Tensor]  # vectors (R, D), their labels (R,), their photographs (R,)


def _gather(module: RCAModule, images: CachedFeatures) -> tuple[Tensor, Tensor, _Rows, _Rows]:
    """Mean features `(I, D)` and tags `(I, L)` of all photographs, and their regions and cells."""
    device, width = module.device, module.embedding_dim
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    means, tags, rows = [torch.zeros(0, width, device=device)], [torch.zeros(0, module.num_classes, device=device)], []
    regions, cells = [(torch.zeros(0, width, device=device), empty, empty)], []
    cells.append((regions[0][0].half(), empty, empty))
    for row, features, of_image in _share(module, images, range(len(images))):
        means.append(features[:, :width].float().mean(dim=(0, 2, 3))[None])  # (V, D, h, w) -> (1, D)
        tags.append(of_image[None].float())
        rows.append(row)
        if not module.contrasts_prototypes:
            continue
        found = module.training_step({"features": [[features]], "tags": of_image[None], "image_id": [""]}, 0)
        own = found["regions"]
        regions.append((own.embeddings.float(), own.labels, torch.full_like(own.labels, row)))
        if "cells" in found:
            own = found["cells"]
            unit = F.normalize(own.embeddings.float(), dim=1).half()
            cells.append((unit, own.labels, torch.full_like(own.labels, row)))
    order = torch.tensor(rows, dtype=torch.int64, device=device)
    all_means, all_tags, order = gather_uneven(torch.cat(means), torch.cat(tags), order)
    order = torch.argsort(order)
    return all_means[order], all_tags[order], _in_order(regions), _in_order(cells)


def _in_order(parts: list[_Rows]) -> _Rows:
    """Rows of all ranks, photograph by photograph."""
    vectors, labels, images = gather_uneven(*(torch.cat(values) for values in zip(*parts, strict=True)))
    order = torch.argsort(images, stable=True)
    return vectors[order], labels[order], images[order]


def _share(module: RCAModule, images: CachedFeatures, rows: Sequence[int]) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Row, features `(V, D, h, w)` at the scale of training and tags `(L,)` of those rows that this rank reads."""
    processes, rank = world_size_and_rank()
    for row in rows[rank::processes]:
        sample = images[row]
        largest = max(sample["features"], key=lambda of_scale: of_scale.shape[2] * of_scale.shape[3])
        yield row, largest.to(module.network.coarse_head.weight), sample["tags"].to(module.device)


def _held_out_evidence(module: RCAModule, images: CachedFeatures, regions: _Rows, cells: _Rows) -> Tensor | None:
    """Evidence `(I, L)` of each photograph by prototypes of the other folds; `None` while there are none."""
    reader = module.network.aggregation
    if reader is None or not module.network.has_prototypes:
        return None
    found, rows = [torch.zeros(0, module.num_classes, device=module.device)], []
    by_fold = [_prototypes_without(module, reader, held_out, regions, cells) for held_out in range(FOLDS)]
    with _restored(reader):
        for held_out, (prototypes, valid) in enumerate(by_fold):
            reader.write(prototypes, valid)
            for row, features, _ in _share(module, images, range(held_out, len(images), FOLDS)):
                evidence = module.network.class_evidence([features])
                # A fold may lack what all have: NaN is what a class without prototypes has.
                none = features.new_full((1, module.num_classes), torch.nan)
                found.append(none if evidence is None else evidence.mean(dim=0, keepdim=True))
                rows.append(row)
    gathered, order = gather_uneven(torch.cat(found), torch.tensor(rows, dtype=torch.int64, device=module.device))
    return gathered[torch.argsort(order)]


def _prototypes_without(
    module: RCAModule, reader: SemanticAggregation, held_out: int, regions: _Rows, cells: _Rows
) -> tuple[Tensor, Tensor]:
    """Prototypes `(Q, D)` of the photographs outside a fold, and which are valid `(Q,)`; the first rank makes them."""
    prototypes, valid = torch.zeros_like(reader.prototypes), torch.zeros_like(reader.valid, dtype=torch.uint8)
    if world_size_and_rank()[1] == 0:
        vectors, labels, _ = _outside(regions, held_out)
        most = max(1, int(torch.bincount(labels).max())) if len(labels) else 1
        memory = RegionMemory(module.memory_classes, most, module.embedding_dim).to(vectors.device)
        ids = torch.zeros(len(labels), ID_BYTES, dtype=torch.uint8)
        memory.enqueue(vectors, labels, ids, step=0)
        parts = []
        for classes, number in ((slice(reader.num_classes), reader.num_prototypes),
                                (slice(reader.num_classes, None), reader.background_prototypes)):  # fmt: skip
            if number:
                parts.append(
                    make_prototypes(
                        memory.embeddings[classes],
                        memory.valid[classes],
                        number,
                        clustering="kmeans",
                        backend="auto",
                        iterations=_ITERATIONS,
                        seed=held_out,
                    )
                )
        prototypes.copy_(torch.cat([part.vectors.flatten(0, 1) for part in parts]))  # (C, K, D) -> (Q, D)
        valid.copy_(torch.cat([part.valid.flatten() for part in parts]))
        used = valid.bool()
        vectors, labels, _ = _outside(cells, held_out)
        if len(labels) and bool(used.any()):
            moved, _ = contrast_prototypes(
                prototypes[used],
                reader.labels[used],
                vectors,
                labels,
                temperature=reader.temperature,
                epochs=2 * EPOCHS,
                seed=held_out,
            )
            prototypes[used] = moved.to(prototypes.dtype)
    broadcast_from_first(prototypes, valid)
    return prototypes, valid.bool()


def _outside(rows: _Rows, held_out: int) -> _Rows:
    vectors, labels, images = rows
    chosen = images % FOLDS != held_out
    return vectors[chosen], labels[chosen], images[chosen]


@contextmanager
def _restored(reader: SemanticAggregation) -> Iterator[None]:
    """Gives the prototypes back afterwards."""
    prototypes, valid = reader.prototypes.clone(), reader.valid.clone()
    try:
        yield
    finally:
        reader.write(prototypes, valid)
