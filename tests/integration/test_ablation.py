"""`experiments/ablation`: the words of its grids, and a real run on generated images."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import run as script
import table
import torch
import yaml

from tests.integration.conftest import ROOT

pytestmark = pytest.mark.usefixtures("one_thread_at_the_root")

GRIDS = sorted((ROOT / "experiments" / "ablation").glob("*.yaml"))


@pytest.mark.parametrize("path", GRIDS, ids=lambda path: path.stem)
def test_rca_takes_the_words_of_every_row(path: Path, tmp_path: Path):
    runs = {run.row: run for run in script.plan(script.load_grid(path), tmp_path, [], None, None)}
    for run in runs.values():
        if not run.rival:  # their parser is another one
            script.check_words(run)


def test_a_real_run_ends_in_a_table(config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content: dict[str, Any] = yaml.safe_load(config.read_text())
    (keeper,) = content["trainer"]["callbacks"]
    del keeper["init_args"]["dirpath"]
    content["trainer"]["max_epochs"] = 1
    config.write_text(yaml.safe_dump(content))
    rival = {"context": "object_context", "set": {"model.contrast": False, "model.eval_tags": "predicted"}}
    grid = {"config": str(config), "seeds": [1], "halves": True, "rows": {"object": rival}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    out = tmp_path / "out"
    assert script.main([str(tmp_path / "grid.yaml"), "--out", str(out), "--data.batch_size=4"]) == 0
    checkpoint = torch.load(out / "work" / "object-seed1" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 6  # 24 images, 4 a batch
    record = json.loads((out / "results" / "object-seed1.json").read_text())
    images = {split: score["images"] for split, score in record["splits"].items()}
    assert images == {"train": 24, "train_a": 12, "train_b": 12, "val": 6}
    assert {score["tags"] for score in record["splits"].values()} == {"predicted"}
    table.main([str(out)])
    assert "| object | 1 |" in capsys.readouterr().out
