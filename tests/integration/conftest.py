"""Small runs of the command line in this process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch.cli import LightningCLI

from rca_lightning.backbones.build import build_backbone
from rca_lightning.data.synthetic.dataset import CLASS_NAMES, generate
from tests.integration.running import keep_parsers, run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session", autouse=True)
def parsers_built_once() -> Iterator[None]:
    """Keeps the parsers of `rca`: building one takes longer than most runs here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(LightningCLI, "setup_parser", keep_parsers())
        yield


@pytest.fixture
def one_thread_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a user runs the scripts of `experiments`."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(scope="session")
def synthetic_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A generated dataset in VOC layout: 24 training and 6 validation images of 64 pixels."""
    return generate(tmp_path_factory.mktemp("synthetic"), seed=3, train_images=24, val_images=6, image_size=64)


@pytest.fixture
def config(tmp_path: Path, synthetic_root: Path) -> Path:
    """A configuration that trains for seconds."""
    return write_config(tmp_path, synthetic_root)


def write_config(folder: Path, synthetic_root: Path) -> Path:
    """`config.yaml` of a run in `folder/run`."""
    return _write(folder / "config.yaml", _localize(folder, synthetic_root))


def write_frozen_config(folder: Path, synthetic_root: Path) -> Path:
    """`config.yaml` of a run in `folder/run` behind a frozen backbone, whose random weights it writes."""
    torch.manual_seed(0)
    weights = folder / "weights.pth"
    torch.save(build_backbone("resnet14", weights="none").state_dict(), weights)
    content = _localize(folder, synthetic_root)
    content["model"] = {"backbone": "resnet14", "output_stride": 16, "weights": str(weights), "embedding_dim": 24}
    content["memory"] = {"backend": "torch"}
    content["features"] = {"folder": str(folder / "features")}
    return _write(folder / "config.yaml", content)


@pytest.fixture
def segment(tmp_path: Path, synthetic_root: Path) -> Path:
    """The configuration of the first stage with another module."""
    return _write(tmp_path / "segment.yaml", _segment(tmp_path, synthetic_root))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> Path:
    """Checkpoint of a run of `config`."""
    folder = tmp_path_factory.mktemp("trained")
    run("fit", write_config(folder, synthetic_root))
    return folder / "run" / "last.ckpt"


@pytest.fixture
def checkpoint(trained: Path, tmp_path: Path) -> Path:
    """Where `config` would have left its checkpoint."""
    return _link(trained, tmp_path)


@pytest.fixture(scope="session")
def trained_segmenter(tmp_path_factory: pytest.TempPathFactory, synthetic_root: Path) -> Any:
    """The CLI object of a run of `segment`."""
    folder = tmp_path_factory.mktemp("trained_segmenter")
    return run("fit", _write(folder / "segment.yaml", _segment(folder, synthetic_root)))


@pytest.fixture
def segment_checkpoint(trained_segmenter: Any, tmp_path: Path) -> Path:
    """Where `segment` would have left its checkpoint."""
    return _link(Path(trained_segmenter.trainer.default_root_dir) / "last.ckpt", tmp_path)


def _link(checkpoint: Path, folder: Path) -> Path:
    path = folder / "run" / checkpoint.name
    path.parent.mkdir()
    os.link(checkpoint, path)
    return path


def _write(path: Path, content: dict[str, Any]) -> Path:
    path.write_text(yaml.safe_dump(content))
    return path


def _segment(folder: Path, images: Path) -> dict[str, Any]:
    content = _localize(folder, images)
    del content["memory"]
    content["task"] = "segment"
    content["model"] = {
        "backbone": "resnet14",
        "output_stride": 8,
        "frozen_batchnorm": False,
        "optimizer": "adamw",
        "lr": 0.002,
        "new_layer_lr_ratio": 1.0,
        "flip": False,
    }
    return content


def _localize(folder: Path, images: Path) -> dict[str, Any]:
    return {
        "seed_everything": 1,
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "default_root_dir": str(folder / "run"),
            "callbacks": [
                {
                    "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
                    "init_args": {"dirpath": str(folder / "run"), "save_last": True},
                },
            ],
        },
        "memory": {"slots": 16, "backend": "torch"},
        "model": {
            "backbone": "resnet18",
            "output_stride": 16,
            "frozen_batchnorm": False,
            "num_prototypes": 3,
            "warmup_epochs": 1,
            "background_prototypes": 4,
            # A network that has seen four batches is sure of nothing; everything may enter the memory.
            "confidence": 0.0,
            "lr": 0.01,
            "new_layer_lr_ratio": 1.0,
            "flip": False,
        },
        "data": {
            "dataset": "folder",
            "root": str(images),
            "image_dir": "JPEGImages",
            "mask_dir": "SegmentationClass",
            "tags_file": "image_labels.txt",
            "class_file": str(_class_file(images)),
            "split_files": {
                name: str(images / "ImageSets" / "Segmentation" / f"{name}.txt") for name in ("train", "val")
            },
            "batch_size": 8,
            "crop_size": 64,
            "num_workers": 0,
        },
    }


def _class_file(root: Path) -> Path:
    path = root / "classes.txt"
    path.write_text("\n".join(CLASS_NAMES) + "\n")
    return path
