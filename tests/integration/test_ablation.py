"""`experiments/ablation`: the words of its grids, and a real run on generated images."""

from __future__ import annotations

import json
import logging
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


def test_rows_behind_a_frozen_backbone_share_features(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
):
    content: dict[str, Any] = yaml.safe_load(config.read_text())
    del content["trainer"]["callbacks"][0]["init_args"]["dirpath"]
    content["trainer"]["max_epochs"] = 1
    lists = content["data"]["split_files"]
    ids = Path(lists["train"]).read_text().split()
    for name, half in (("train_a", ids[::2]), ("train_b", ids[1::2])):
        lists[name] = str(tmp_path / f"{name}.txt")
        Path(lists[name]).write_text("\n".join(half))
    content["model"] = {"backbone": "resnet14", "weights": "none", "backbone_mode": "frozen", "embedding_dim": 8}
    content["features"] = {"folder": str(tmp_path / "features"), "splits": ["train", "val"]}
    config.write_text(yaml.safe_dump(content))
    rows = {
        "cam": {"set": {"model.aggregation": False, "model.propagation_steps": 0}},
        "cam-propagated": {"fit": "cam", "set": {"model.propagation_steps": 1}},
        "rca": {"set": {"model.num_prototypes": 2, "trainer.max_epochs": 2}},
        "co": {"context": "co_attention"},
        "head": {"context": "prototypes", "set": {"model.num_prototypes": 2, "model.final_map": "refined"}},
        "head-propagated": {"fit": "head", "set": {"model.propagation_steps": 2}},
    }
    grid = {"config": str(config), "seeds": [0], "splits": ["train_a", "train_b", "val"], "rows": rows}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(grid, sort_keys=False))
    out = tmp_path / "out"
    with caplog.at_level(logging.INFO):
        assert script.main([str(tmp_path / "grid.yaml"), "--out", str(out), "--delete-checkpoints"]) == 0
    assert caplog.text.count("features: computing those of") == 1
    assert caplog.text.count("photographs are read from") == 18
    assert {path.name for path in (out / "results").iterdir()} == {f"{name}-seed0.json" for name in rows}
    table.main([str(out), "--chosen-on", "train_a"])
    assert "| row | threshold | train_a | train_b | train_b, oracle | val | val, oracle |" in capsys.readouterr().out
