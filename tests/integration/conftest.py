"""Small runs of the command line in this process."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from rca_lightning.data.synthetic.dataset import generate

ROOT = Path(__file__).resolve().parents[2]


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
    content = {
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
            "root": str(synthetic_root),
            "image_dir": "JPEGImages",
            "mask_dir": "SegmentationClass",
            "tags_file": "image_labels.txt",
            "class_file": str(_class_file(synthetic_root)),
            "split_files": {
                name: str(synthetic_root / "ImageSets" / "Segmentation" / f"{name}.txt") for name in ("train", "val")
            },
            "batch_size": 8,
            "crop_size": 64,
            "num_workers": 0,
        },
    }
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _class_file(root: Path) -> Path:
    from rca_lightning.data.synthetic.dataset import CLASS_NAMES

    path = root / "classes.txt"
    path.write_text("\n".join(CLASS_NAMES) + "\n")
    return path
