"""The command that draws the README's first picture, with small networks and generated photographs."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import lightning as L
import numpy as np
from PIL import Image

from rca_lightning import RCAModule
from rca_lightning.data.classes import VOC_CLASSES

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "readme_picture.py"


def checkpoint(path: Path, **arguments) -> str:
    module = RCAModule(num_classes=20, class_names=list(VOC_CLASSES), backbone="resnet14", weights=None, **arguments)
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return str(path)


def test_picture_has_four_rows_for_each_photograph_and_the_readme_its_sources(tmp_path: Path, monkeypatch, capsys):
    photographs = runpy.run_path(str(SCRIPT))["PHOTOGRAPHS"]
    for number, (name, _, _) in enumerate(photographs):
        pixels = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
    words = ["--cam", checkpoint(tmp_path / "cam.ckpt", contrast=False, aggregation=False)]
    words += ["--rca", checkpoint(tmp_path / "rca.ckpt"), "--photographs", str(tmp_path), "--refine", "pamr"]
    monkeypatch.setattr(
        sys, "argv", ["readme_picture.py", *words, "--height", "40", "--out", str(tmp_path / "out.png")]
    )
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert Image.open(tmp_path / "out.png").size == (4 * (60 + 4) + 4, 18 + 4 * (40 + 4))
    readme = " ".join((ROOT / "README.md").read_text().split())
    said = capsys.readouterr().out
    for name, tag, source in photographs:
        assert f"{name}: {source}" in said
        author, licence = source.split(", ")
        assert f"{author} ({licence})" in readme
        assert tag in VOC_CLASSES
    assert (ROOT / "experiments" / "readme_picture.jpg").stat().st_size < 300_000
