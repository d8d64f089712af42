"""A long training on generated images: whether memory stays flat, and whether workers or file handles are left behind.

    python benchmarks/soak.py --steps 2000

Every epoch has clustering, a validation, a panel and checkpoints. Linux only.
"""

from __future__ import annotations

import argparse
import gc
import logging
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from measure.footprint import Held, held
from measure.result import Result

from rca_lightning import (
    AtomicCheckpointIO,
    AttentionAccumulation,
    PanelCallback,
    RCAModule,
    RegionMemoryCallback,
    WSSSDataModule,
)

HERE = Path(__file__).parent
_BATCH, _EPOCHS, _WORKERS = 8, 20, 2
_GROWTH = 0.02  # of the resident memory, after the warm-up


class _Samples(L.Callback):
    """What is held after every so many steps."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.found: list[tuple[int, Held]] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step % self.every == 0:
            self.found.append((trainer.global_step, held()))


def run(*, quick: bool = False, steps: int = 2000) -> Result:
    """Train for so many steps.

    Args:
        quick: a few steps, to see that it runs: growth has no limit then.
        steps: of the training, in 20 epochs.
    """
    steps, epochs = (8, 2) if quick else (steps, _EPOCHS)
    samples = _Samples(every=max(1, steps // 100))
    with tempfile.TemporaryDirectory() as folder:
        _fit(Path(folder), steps // epochs, epochs, samples, warmup=True)  # what is made once and for all
        before = _settled()
        started = time.perf_counter()
        _fit(Path(folder), steps // epochs, epochs, samples)
        seconds = time.perf_counter() - started
        after = _settled(before)
    mib = [one.mib for _, one in samples.found]
    first, last = _middle(mib, 0.2, 0.3), _middle(mib, 0.9, 1.0)
    rows = [{"step": step, **vars(one)} for step, one in samples.found[:: max(1, len(mib) // 10)]]
    result = Result("soak", f"{steps} steps, {epochs} epochs with clustering, validation, panel, checkpoints", rows)
    result.at_most("growth of memory after a fifth of the steps", last / first - 1, float("inf") if quick else _GROWTH)
    result.at_most("processes left behind", after.children - before.children, 0)
    result.at_most("file handles left behind", after.files - before.files, 0)
    result.at_most("threads left behind", after.threads - before.threads, 0)
    result.notes.update(before=vars(before), after=vars(after), fit_minutes=seconds / 60, highest_mib=max(mib))
    return result


def _fit(folder: Path, steps: int, epochs: int, samples: _Samples, *, warmup: bool = False) -> None:
    data = WSSSDataModule(
        "synthetic",
        folder / "data",
        batch_size=_BATCH,
        num_workers=_WORKERS,
        crop_size=64,
        synthetic_train_images=max(_BATCH, steps * _BATCH),
        synthetic_val_images=8,
        synthetic_image_size=64,
    )
    module = RCAModule(
        data.num_classes, data.class_names, backbone="resnet14", frozen_batchnorm=False, num_prototypes=5,
        confidence=0.0, warmup_epochs=1, flip=False,
    )  # fmt: skip
    trainer = L.Trainer(
        max_epochs=1 if warmup else epochs,
        accelerator="cpu",
        devices=1,
        callbacks=[
            RegionMemoryCallback(slots=50),
            AttentionAccumulation(cells=16),
            PanelCallback(),
            ModelCheckpoint(folder / "checkpoints", monitor="val/miou_true_tags", mode="max", save_last=True),
            *([] if warmup else [samples]),
        ],
        plugins=[AtomicCheckpointIO()],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(module, datamodule=data)


def _settled(like: Held | None = None) -> Held:
    """What is held once the dust has settled; threads of closed pipes take a moment to end."""
    for _ in range(50):
        gc.collect()
        found = held()
        if like is None or (found.threads <= like.threads and found.files <= like.files):
            break
        time.sleep(0.1)
    return found


def _middle(values: list[float], start: float, end: float) -> float:
    """Median of a part of them, given by shares of their number."""
    first = int(start * len(values))
    return statistics.median(values[first : max(first + 1, int(end * len(values)))])


def main(words: list[str] | None = None) -> Result:
    """Print what was found and write `soak.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000, help="of the training")
    parser.add_argument("--quick", action="store_true", help="a few steps: whether it runs")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="folder of the JSON file")
    given = parser.parse_args(words)
    logging.disable(logging.WARNING)
    result = run(quick=given.quick, steps=given.steps)
    result.show()
    print(f"written to {result.write(given.out)}")
    return result


if __name__ == "__main__":
    main()
