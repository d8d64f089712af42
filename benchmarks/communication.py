"""What the memory adds to what ranks tell each other in a training step, counted, and predicted for larger runs."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from measure.result import Result
from torch import Tensor

from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.rca.memory_bank import ID_BYTES
from rca_lightning.rca.regions import Regions

_LABEL = 8
_PLACE = 8  # in the batch that a single process would have
_LENGTH = 8  # of the number of regions, which goes first
_RESNET50 = 23_508_032  # parameters without the classifier, in float32
_DIM = 48
_CLASSES, _PROTOTYPES, _BACKGROUND = 3, 2, 4
# Regions of each rank in each of two steps, the last of which ends an epoch.
_COUNTS = {2: ((5, 3), (0, 4)), 3: ((2, 0, 6), (1, 1, 1))}
# COCO 2014 has 2.9 classes an image; each with a region, and one of the background, and a rank with a fifth more.
_COCO = round(16 * (2.9 + 1) * 1.2)


def bytes_per_step(regions: Sequence[int], dim: int) -> int:
    """Bytes each rank receives, and sends as many, for the memory in a step.

    Every rank gets the number of regions of each other, and their embeddings (float32), labels, image ids and places,
    padded to the most that a rank has.

    Args:
        regions: of each rank.
        dim: channels `D`.
    """
    others = len(regions) - 1
    return others * (_LENGTH + max(regions) * (4 * dim + _LABEL + ID_BYTES + _PLACE))


def bytes_per_epoch(prototypes: int, dim: int, world: int) -> int:
    """Bytes each rank but the first receives after a clustering: prototypes, and which are valid."""
    return prototypes * (4 * dim + 1) if world > 1 else 0


def bytes_of_statistics(dim: int, world: int) -> int:
    """Bytes each rank receives, and sends as many, so that embeddings are standardised over all ranks.

    Forward the number of pixels, mean and variance of each channel of each other rank (float32); backward a ring
    all-reduce of the gradients of those of all ranks.
    """
    numbers = (1 + 2 * dim) * 4
    return (world - 1) * numbers + 2 * (world - 1) * numbers


def bytes_of_gradients(parameters: int, world: int) -> int:
    """Bytes each rank receives, and sends as many, in a ring all-reduce of float32 gradients."""
    return 2 * (world - 1) * parameters * 4 // world


def run(*, quick: bool = False) -> Result:
    """Count in runs of two and three processes, and predict; quick: two processes only."""
    result = Result(
        "communication", "bytes a rank receives for the memory, in a step and after a clustering", rows := []
    )
    for world, counts in list(_COUNTS.items())[: 1 if quick else None]:
        found = _measured(world)
        prototypes = _CLASSES * _PROTOTYPES + _BACKGROUND
        wrong = [
            abs(found[rank]["steps"][step] - bytes_per_step(regions, _DIM))
            for rank in range(world)
            for step, regions in enumerate(counts)
        ]
        wrong += [abs(found[rank]["epoch"] - bytes_per_epoch(prototypes, _DIM, world)) for rank in range(1, world)]
        result.at_most(f"{world} processes: counted bytes off the formula", max(wrong), 0)
        rows.append(_row(f"{world} processes, counted", counts[0], _DIM, found[1]["steps"][0], found[1]["epoch"], 0))
    rows.extend(_predicted())
    result.notes["regions of a rank in COCO"] = (
        f"16 images x (2.9 classes + 1 background) x 1.2 for the fullest: {_COCO}"
    )
    result.notes["gradients"] = f"ring all-reduce of {_RESNET50} parameters, which overlaps with the backward pass"
    result.notes["besides, a step of COCO"] = (
        f"{bytes_of_statistics(3072, 8)} bytes to standardise 3072 channels, 32 for losses, 1 for finiteness"
    )
    return result


def _predicted() -> list[dict[str, Any]]:
    found = [_row("VOC trainaug, 1 GPU", (48,), 3072, bytes_per_step((48,), 3072), 0, 0)]
    for dim in (3072, 2048, 256):
        step = bytes_per_step([_COCO] * 8, dim)
        epoch = bytes_per_epoch(80 * 20 + 64, dim, 8)
        found.append(_row("COCO 2014, 8 GPUs x 16", [_COCO] * 8, dim, step, epoch, bytes_of_gradients(_RESNET50, 8)))
    return found


def _row(run: str, regions: Sequence[int], dim: int, step: int, epoch: int, gradients: int) -> dict[str, Any]:
    return {
        "run": run,
        "regions": max(regions),
        "channels": dim,
        "step_bytes": step,
        "epoch_bytes": epoch,
        "gradient_bytes": gradients,
        "share_of_gradients": step / gradients if gradients else 0.0,
    }


def _measured(world: int) -> list[dict[str, Any]]:
    """What each rank received: `steps`, one number each, and `epoch`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(world, port, folder), nprocs=world)
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _rank(rank: int, world: int, port: int, folder: str) -> None:
    """Two steps of the callback, the second the last of an epoch."""
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")  # there is no trainer to log to
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world)
    counted = Counted(rank)
    module = RCAModule(
        _CLASSES, [str(label) for label in range(_CLASSES)], backbone="resnet14", embedding_dim=_DIM, warmup_epochs=1,
        num_prototypes=_PROTOTYPES, background_prototypes=_BACKGROUND,
    )  # fmt: skip
    callback = RegionMemoryCallback(slots=20, backend="torch")
    trainer: Any = SimpleNamespace(
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
        num_devices=1, global_step=0, current_epoch=0, is_last_batch=False,
    )  # fmt: skip
    callback.setup(trainer, module, "fit")
    steps = []
    for step, regions in enumerate(_COUNTS[world]):
        trainer.is_last_batch = step == len(_COUNTS[world]) - 1
        before = counted.gathered
        callback.on_train_batch_end(trainer, module, _outputs(regions[rank], seed=rank), None, step)
        steps.append(counted.gathered - before)
    torch.save({"steps": steps, "epoch": counted.broadcast}, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def _outputs(count: int, seed: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % (_CLASSES + 1)
    regions = Regions(torch.randn(count, _DIM, generator=generator), labels, torch.zeros(count, dtype=torch.long))
    return {"regions": regions, "image_id": [f"photo of rank {seed}"]}


class Counted:
    """Counts the bytes that this rank receives from others through collectives, from now on.

    Raises:
        RuntimeError: from a collective that is not counted, as soon as one is called.
    """

    def __init__(self, rank: int) -> None:
        self.gathered, self.broadcast = 0, 0
        gather, broadcast = dist.all_gather, dist.broadcast

        def all_gather(received: list[Tensor], given: Tensor) -> None:
            self.gathered += sum(_bytes(part) for place, part in enumerate(received) if place != rank)
            gather(received, given)

        def broadcast_from(tensor: Tensor, src: int) -> None:
            self.broadcast += _bytes(tensor) if src != rank else 0
            broadcast(tensor, src=src)

        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError("a collective that this benchmark does not count")

        dist.all_gather, dist.broadcast = all_gather, broadcast_from
        for name in (
            "all_reduce",
            "all_gather_object",
            "all_gather_into_tensor",
            "broadcast_object_list",
            "all_to_all",
        ):
            setattr(dist, name, refuse)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
