"""Target 1: what a training step of RCA costs over one of a plain CAM, in time and in memory."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from measure.result import Result
from measure.timing import as_rows, in_turns, ratio

from rca_lightning import RCAModule, RegionMemoryCallback
from rca_lightning.data.sample import Batch


@dataclass(frozen=True)
class Size:
    """Classes, memory and image of one comparison; `limit` is the ratio aimed at."""

    classes: int
    limit: float
    embedding_dim: int | None = None
    slots: int = 500
    prototypes: int = 10
    backbone: str = "resnet50"
    batch: int = 16
    side: int = 256


SIZES = {
    "voc": Size(classes=20, limit=1.08),
    "coco": Size(classes=80, limit=1.12),
    "thousand": Size(classes=1000, limit=1.5, embedding_dim=256),
}
TINY = {"tiny": Size(classes=4, limit=float("inf"), slots=20, backbone="resnet14", batch=2, side=64)}
_MEMORY_LIMIT = 1.1
_EQUATIONS = "rca, equations as they stand"  # RCANetwork(fused=False)
_PROCESSES = 3  # whose peaks are measured; it depends on what an allocator finds free


def run(*, quick: bool = False, rounds: int = 5) -> Result:
    """Steps in turns at each size, and peak memory in processes of their own.

    Args:
        quick: tiny sizes, to see that it runs.
        rounds: timed steps of each.
    """
    result = Result("training_step", "one training step, forward, backward, optimiser and memory", rows := [])
    for name, size in (TINY if quick else SIZES).items():
        steps = {method: make_step(size, rca=method == "rca") for method in ("cam", "rca")}
        steps[_EQUATIONS] = make_step(size, rca=True, fused=False)
        times = in_turns(steps, rounds=rounds)
        del steps
        peaks = _peaks(name, processes=1 if quick else _PROCESSES)
        bank = (size.classes + 1) * size.slots * embedding_channels(size) * 4 / 2**20
        for row in as_rows(times, "cam"):
            own = peaks.get(str(row["way"]))
            rows.append({"size": name, **row, "peak_mib": median(own) if own else None, "peaks_mib": own})
        result.at_most(f"{name}: time over plain CAM", ratio(times["rca"], times["cam"]), size.limit)
        found = (median(peaks["rca"]) - bank) / median(peaks["cam"])
        result.at_most(f"{name}: peak memory less the bank over plain CAM", found, _MEMORY_LIMIT)
        result.notes[f"{name}: bank in MiB"] = bank
        result.notes[f"{name}: time by the equations over time by fused_aggregation"] = ratio(
            times[_EQUATIONS], times["rca"]
        )
    return result


def embedding_channels(size: Size) -> int:
    """Channels of a region."""
    return RCAModule(1, backbone=size.backbone, embedding_dim=size.embedding_dim).embedding_dim


def make_step(
    size: Size, *, rca: bool, channels_last: bool = False, compiled: bool = False, fused: bool = True
) -> Callable[[], None]:
    """A training step on random images with a full memory and all prototypes there.

    Args:
        size: see `Size`.
        rca: whether it is RCA, else a plain CAM.
        channels_last: see `RCAModule`.
        compiled: whether `torch.compile` has gone over the backbone.
        fused: see `RCANetwork`.
    """
    module, callback = make_module(size, rca=rca, channels_last=channels_last)
    module.train()
    module.network.fused = fused
    trainer = SimpleNamespace(global_step=1, current_epoch=0, is_last_batch=False)
    if compiled:
        module.network.backbone.compile()
    optimizer = torch.optim.SGD([p for p in module.parameters() if p.requires_grad], lr=1e-4, momentum=0.9)
    batch = make_batch(size, str(module.device))

    def step() -> None:
        trainer.global_step += 1
        optimizer.zero_grad()
        outputs = module.training_step(batch, 0)
        outputs["loss"].backward()
        optimizer.step()
        if rca:
            callback.on_train_batch_end(trainer, module, outputs, batch, 0)

    return step


def make_module(size: Size, *, rca: bool, channels_last: bool = False) -> tuple[RCAModule, RegionMemoryCallback]:
    """A module, for RCA with a full memory and all prototypes, and the callback that owns them."""
    torch.manual_seed(0)
    options = {} if rca else {"contrast": False, "aggregation": False}
    module = RCAModule(
        size.classes,
        backbone=size.backbone,
        embedding_dim=size.embedding_dim,
        num_prototypes=size.prototypes,
        warmup_epochs=0,
        channels_last=channels_last,
        **options,
    ).to("cuda" if torch.cuda.is_available() else "cpu")
    module.log = module.log_dict = lambda *values, **how: None  # no Trainer to log to
    callback = RegionMemoryCallback(slots=size.slots)
    if rca:
        trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=module.device), num_devices=1)
        callback.setup(trainer, module, "fit")
        callback.on_fit_start(trainer, module)
        fill(module, callback)
    return module, callback


def make_batch(size: Size, device: str) -> Batch:
    """Random images with one to three tags each, about as in VOC."""
    generator = torch.Generator().manual_seed(1)
    tags = torch.zeros(size.batch, size.classes)
    for row in range(size.batch):
        tags[row, torch.randperm(size.classes, generator=generator)[: 1 + row % 3]] = 1
    images = torch.randn(size.batch, 3, size.side, size.side, generator=generator)
    sizes = torch.full((size.batch, 2), size.side)
    names = [f"image_{row}" for row in range(size.batch)]
    return Batch(image=images.to(device), tags=tags.to(device), image_id=names, original_size=sizes.to(device))


def fill(module: RCAModule, callback: RegionMemoryCallback) -> None:
    """Random unit vectors in every slot and prototype."""
    memory, reader = callback.memory, module.network.aggregation
    assert memory is not None
    assert reader is not None
    memory.embeddings = F.normalize(torch.randn_like(memory.embeddings), dim=2)
    memory.counts.fill_(memory.slots)
    reader.write(F.normalize(torch.randn_like(reader.prototypes), dim=1), torch.ones_like(reader.valid))


def _peaks(size: str, processes: int) -> dict[str, list[float]]:
    """Peak memory in MiB of each method, in so many processes of their own, in turns."""
    found: dict[str, list[float]] = {"cam": [], "rca": []}
    for _ in range(processes):
        for method, own in found.items():
            own.append(_peak_elsewhere(size, method))
    return found


def _peak_elsewhere(size: str, method: str) -> float:
    command = [sys.executable, __file__, size, method]
    found = subprocess.run(command, check=True, capture_output=True, text=True, cwd=Path(__file__).parent)
    return float(json.loads(found.stdout.splitlines()[-1])["peak_mib"])


def _peak(size: str, method: str) -> float:
    """Peak memory of three steps in MiB: of the accelerator, or of the process beyond what its imports take."""
    before = _high_water()
    step = make_step((SIZES | TINY)[size], rca=method == "rca")
    for _ in range(3):
        step()
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    return (_high_water() - before) / 2**10


def _high_water() -> int:
    """Highest resident memory of this process so far, in KiB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise OSError("/proc/self/status holds no VmHWM; peak memory is measured on Linux only")


if __name__ == "__main__":
    print(json.dumps({"peak_mib": _peak(sys.argv[1], sys.argv[2])}))
