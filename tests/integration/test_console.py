"""What a user reads on a console of 80 columns, in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
THREE = """
import sys
from rca_lightning.cli.main import main
for command in ("fit", "validate", "predict"):
    words = [] if command == "fit" else ["--ckpt_path", sys.argv[2]]
    main([command, "--config", sys.argv[1], *words])
"""
BOX = re.compile("[┏┡┃│├└━]")


def lines_of(config: Path, checkpoint: Path) -> list[str]:
    # Lightning makes its logger and checkpoints here, and frozen BatchNorm is the default.
    path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
    environment = os.environ | {"COLUMNS": "80", "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", THREE, config, checkpoint],
        env=environment, cwd=config.parent, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:]
    return [line.rstrip() for line in done.stdout.splitlines()]


def written(config: Path, **model: object) -> Path:
    """The configuration, with what Lightning prints by default."""
    content = yaml.safe_load(config.read_text())
    content["trainer"].pop("enable_progress_bar")
    content["trainer"].pop("enable_model_summary")
    content["trainer"]["logger"] = True
    content["model"] |= {"backbone": "resnet14", "frozen_batchnorm": True, **model}
    config.write_text(yaml.safe_dump(content))
    return config


@pytest.mark.parametrize("task", ["localize", "segment"])
def test_80_columns_without_advertisements_and_noise(task: str, config: Path, segment: Path, tmp_path: Path):
    given = written(config, num_prototypes=1) if task == "localize" else written(segment)
    lines = lines_of(given, tmp_path / "run" / "last.ckpt")
    text = "\n".join(lines)
    for noise in ("💡", "litlogger", "litmodels", "deprecated", "eval mode", "FLOPs", "too few regions", "…"):
        assert noise not in text, [line for line in lines if noise in line]
    tables = [line for line in lines if BOX.search(line)]
    assert len(tables) > 10
    assert all(len(line) <= 80 for line in tables), max(tables, key=len)
    title = "Seeds of split 'val', 6 images, true tags" if task == "localize" else "Labels of split 'val', 6 images"
    assert title in lines
    # No bar is drawn where there is no terminal; its last state would be the only one.
    assert not [line for line in lines if "it/s" in line]
    summary = [line for line in lines if line.startswith("network: ")]
    assert len(summary) == 1
    assert re.fullmatch(r"network: \w+Network, \d+ K weights, \d+ K trained, \d\.\d MB", summary[0])
    scores = [line for line in lines if re.match(r"epoch \d: mIoU \d", line)]
    assert [line.split(":")[0] for line in scores] == ["epoch 1", "epoch 2"]


def test_a_frozen_fit_says_what_it_does_and_no_noise(config: Path, tmp_path: Path):
    changes = {"weights": "none", "backbone_mode": "frozen", "embedding_dim": 16, "frozen_batchnorm": True}
    given = written(config, num_prototypes=1, **changes)
    content = yaml.safe_load(given.read_text())
    content["features"] = {"folder": str(tmp_path / "features")}
    given.write_text(yaml.safe_dump(content))
    lines = lines_of(given, tmp_path / "run" / "last.ckpt")
    text = "\n".join(lines)
    for noise in ("configure_optimizers", "eval mode", "lr_scheduler", "Traceback", "--model.confidence"):
        assert noise not in text, [line for line in lines if noise in line]
    (summary,) = [line for line in lines if line.startswith("network: ")]
    assert re.fullmatch(r"network: RCANetwork, \d+ K weights, 0 trained, \d\.\d MB", summary)
    # Those to train on are computed for the projection, the others now.
    assert any(line.startswith("features: computing those of 6 photographs") for line in lines)
    assert any(line.startswith("epoch 2: mIoU") for line in lines)


def test_importing_the_library_changes_no_filter_and_no_logger():
    program = """
import logging, warnings
import lightning, torch, torchmetrics
def state():
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero")]
    return list(warnings.filters), [(list(one.filters), list(one.handlers), one.level) for one in loggers]
before = state()
import rca_lightning
from rca_lightning import RCAModule, SegmentationModule, WSSSDataModule, RegionMemoryCallback
after = state()
assert after[1] == before[1]
added = [one for one in after[0] if one not in before[0]]
assert not added, added
"""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
