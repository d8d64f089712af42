"""Target 4: where the time of a training epoch goes, by the profiler of Lightning."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.profilers import SimpleProfiler
from measure.result import Result
from training_step import TINY, Size

from rca_lightning import RCAModule, RegionMemoryCallback, WSSSDataModule

_LIMIT = 0.1  # share of the epoch in which the model waits for images
_SIZE = Size(classes=20, limit=1.0, batch=8, side=256)
_BATCHES = 12
_PARTS = {
    "[_TrainingEpochLoop].train_dataloader_next": "images: decode, augment, collate",
    "[Strategy]SingleDeviceStrategy.training_step": "forward and losses",
    "[Strategy]SingleDeviceStrategy.backward": "backward",
    "[Callback]RegionMemoryCallback.on_train_batch_end": "memory and clustering",
    "run_training_epoch": "epoch",
}


def run(*, quick: bool = False, root: Path | None = None, workers: int = 0) -> Result:
    """The second epoch of RCA on photographs, or on generated images of their size.

    Args:
        quick: a tiny network and few images.
        root: folder with photographs in `images` or directly; default: generated ones.
        workers: loader processes; 0 shows the whole cost of the images.
    """
    size = TINY["tiny"] if quick else _SIZE
    batches = 2 if quick else _BATCHES
    profiler = SimpleProfiler()
    with tempfile.TemporaryDirectory() as folder:
        data = _data(Path(folder), size, batches, root, workers)
        module = RCAModule(
            data.num_classes, backbone=size.backbone, num_prototypes=size.prototypes, warmup_epochs=0, confidence=0.0
        )
        trainer = L.Trainer(
            max_epochs=2,
            limit_train_batches=batches,
            limit_val_batches=0,
            devices=1,
            callbacks=[RegionMemoryCallback(slots=size.slots)],
            profiler=profiler,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, datamodule=data)
    rows = _rows(profiler)
    text = f"{batches} steps of {size.batch} x {size.side} px, {size.backbone}, {workers} loader processes"
    result = Result("epoch", text, rows)
    result.at_most("share of the epoch spent on images", rows[0]["share"], float("inf") if quick else _LIMIT)
    return result


def _rows(profiler: SimpleProfiler) -> list[dict[str, Any]]:
    found = {name: sum(_second_half(profiler.recorded_durations.get(key, []))) for key, name in _PARTS.items()}
    rows = [{"part": name, "seconds": seconds, "share": seconds / found["epoch"]} for name, seconds in found.items()]
    rest = found["epoch"] - sum(seconds for name, seconds in found.items() if name != "epoch")
    rows.insert(-1, {"part": "optimiser and the rest", "seconds": rest, "share": rest / found["epoch"]})
    return rows


def _second_half(durations: list[float]) -> list[float]:
    """Those of the second epoch; in the first all is done for the first time."""
    return durations[len(durations) // 2 :]


def _data(folder: Path, size: Size, batches: int, root: Path | None, workers: int) -> WSSSDataModule:
    common: dict[str, Any] = {"batch_size": size.batch, "crop_size": size.side, "num_workers": workers}
    if root is None:
        from data_loading import generate  # of the size of photographs

        (folder / "images").mkdir()
        paths = generate(folder / "images", size.batch * batches)
    else:
        paths = sorted(Path(root).rglob("*.jpg"))[: size.batch * batches]
    names = [f"class_{index}" for index in range(size.classes)]
    (folder / "classes.txt").write_text("\n".join(names) + "\n")
    lines = [f"{path.stem},{names[index % size.classes]}" for index, path in enumerate(paths)]
    (folder / "tags.csv").write_text("\n".join(["image,tags", *lines]) + "\n")
    (folder / "train.txt").write_text("\n".join(path.stem for path in paths) + "\n")
    return WSSSDataModule(
        "folder",
        str(folder),
        image_dir=str(paths[0].parent),
        split_files={"train": str(folder / "train.txt")},
        **common,
    )
