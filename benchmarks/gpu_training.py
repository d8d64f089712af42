"""Part of gpu.py: ten epochs of a plain CAM and of RCA on the lists of voc2012_mini, and the seeds they give."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from measure.result import Result

from rca_lightning.cli.main import main as rca

_EXPERIMENT = Path(__file__).resolve().parents[1] / "experiments" / "voc2012_mini"
_METHODS = ("cam", "rca")
_SPLITS = ("train", "val")
_QUICK = (  # generated images in place of photographs
    "--data.dataset=synthetic",
    "--data.split_files=null",
    "--data.synthetic_train_images=8",
    "--data.synthetic_val_images=2",
    "--data.synthetic_image_size=48",
    "--data.crop_size=48",
    "--data.batch_size=4",
    "--model.backbone=resnet14",
    "--model.frozen_stages=0",
)


def train(
    found: dict[str, Any], *, root: Path | None, weights: Path | None, stride_in: str, workers: int, quick: bool
) -> None:
    """Fill in a row for each method and split, with mIoU and minutes by the clock, as they come.

    Args:
        found: gets `rows`, or `skipped` where there are no photographs.
        root: VOC 2012.
        weights: of an ImageNet ResNet-50.
        stride_in: see `RCAModule`; it belongs to the weights.
        workers: processes that load photographs.
        quick: RCA only, an epoch of generated images.
    """
    if root is None and not quick:
        found["skipped"] = "give --root VOC2012 --weights resnet50.pth to train on photographs"
        print(f"training: skipped; {found['skipped']}")
        return
    epochs = 1 if quick else 10
    result = Result("training", f"{epochs} epochs on voc2012_mini's lists, bf16-mixed, channels_last, seeds", [])
    found["title"], found["epochs"], found["workers"] = result.title, epochs, workers
    rows = found["rows"] = result.rows = []
    precision = torch.get_float32_matmul_precision()  # which `rca` sets for its process
    warnings.filterwarnings("ignore", "LightningCLI's args parameter is intended")
    try:
        for method in _METHODS[-1:] if quick else _METHODS:
            with tempfile.TemporaryDirectory() as folder:
                common = [*_words(Path(folder), root, quick=quick), f"--data.num_workers={workers}"]
                start = [] if quick else [f"--model.weights={weights}", f"--model.stride_in={stride_in}"]
                for row in _run(method, Path(folder), common, [f"--trainer.max_epochs={epochs}", *start]):
                    rows.append(row)  # noqa: PERF402  # a failure later must not lose it
    finally:
        torch.set_float32_matmul_precision(precision)
        result.show()


def _words(folder: Path, root: Path | None, *, quick: bool) -> list[str]:
    """What all commands are told beside the configuration."""
    lists = {split: str(_EXPERIMENT / f"{split}.txt") for split in _SPLITS}
    data = [*_QUICK, f"--data.root={folder / 'images'}"] if quick else [f"--data.root={root}"]
    return [
        f"--data.split_files={json.dumps(lists)}",
        f"--trainer.default_root_dir={folder}",
        "--trainer.precision=bf16-mixed",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        *data,
    ]


def _run(method: str, folder: Path, common: list[str], training: list[str]) -> Iterator[dict[str, Any]]:
    config = ["--config", str(_EXPERIMENT / f"trained_{method}.yaml")]
    started = time.perf_counter()
    rca(["fit", *config, *common, "--model.channels_last=true", *training])
    fit_minutes = (time.perf_counter() - started) / 60
    for split in _SPLITS:
        started = time.perf_counter()
        checkpoint = f"--ckpt_path={folder / 'checkpoints' / 'last.ckpt'}"
        rca(["validate", *config, *common, f"--data.eval_split={split}", checkpoint])
        minutes = (time.perf_counter() - started) / 60
        score = json.loads((folder / "validate.json").read_text())
        yield {
            "method": method,
            "split": split,
            "images": score["images"],
            "miou": score["oracle_miou"],  # at the best threshold, as in the results that are committed
            "threshold": score["oracle_threshold"],
            "classification_map": score["classification_map"],
            "fit_minutes": fit_minutes,
            "validate_minutes": minutes,
        }
