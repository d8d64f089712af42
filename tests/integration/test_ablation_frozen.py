"""`run_frozen.py` from a trained plain CAM to the table."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "experiments" / "ablation"))

import extract as extract_script
import run_frozen
from ablate.markdown import markdown
from ablate.summary import read_results

from rca_lightning.cli import main as rca
from rca_lightning.errors import DataError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def one_thread_at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def features(config: Path, tmp_path: Path) -> Path:
    rca(["fit", f"--config={config}", "--model.contrast=false", "--model.aggregation=false", "--trainer.max_epochs=1"])
    words = ["--config", str(config), "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--scale", "1"]
    extract_script.main([*words, "--out", str(tmp_path / "features" / "seed0")])
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    ]
    config.write_text(yaml.safe_dump(content))
    return tmp_path / "features"


def test_to_the_table(config: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    content = {
        "config": str(config),
        "splits": ["train_a", "val"],
        "halves": True,
        "baseline": "cam",
        "reference": "rca",
        "common": {"model.embedding_stages": 2},
        "rows": {
            "cam": {"set": {"model.contrast": False, "model.aggregation": False}},
            "rca": {},
            "impossible": {"set": {"model.embedding_stages": 3}},
            "coarse": {"fit": "rca", "set": {"model.final_map": "coarse"}},
        },
    }
    grid, out = tmp_path / "grid.yaml", tmp_path / "out"
    grid.write_text(yaml.safe_dump(content))
    words = [str(grid), "--features", str(features), "--out", str(out), "--processes", "1"]
    assert run_frozen.main(words) == 1
    printed = capsys.readouterr().out
    assert "FAILED: impossible-seed0: embedding_stages" in printed
    results = {path.stem: json.loads(path.read_text()) for path in (out / "results").iterdir()}
    assert set(results) == {"cam-seed0", "rca-seed0", "coarse-seed0"}
    found = results["rca-seed0"]
    assert found["prototypes"]["classes_with_one"] > 0
    assert sum(found["regions"].values()) > 0
    assert found["diagnostics"]
    assert found["splits"]["train_a"]["images"] == 12
    assert found["fit"]["cpu_seconds"] > 0
    assert results["coarse-seed0"]["checkpoint_of"] == "rca"
    assert results["coarse-seed0"]["splits"]["val"]["curve"] != found["splits"]["val"]["curve"]

    before = (out / "results" / "rca-seed0.json").stat().st_mtime_ns
    run_frozen.main([*words, "--rows", "cam,rca"])
    assert "all done" in capsys.readouterr().out
    assert (out / "results" / "rca-seed0.json").stat().st_mtime_ns == before
    table = markdown(read_results(out))
    assert "train_a" in table
    assert "Not run: impossible" in table


def test_missing_features_are_named_before_anything_runs(config: Path, tmp_path: Path):
    content = yaml.safe_load(config.read_text())
    content["trainer"]["callbacks"] = [
        {"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": {"save_last": True}}
    ]
    config.write_text(yaml.safe_dump(content))
    grid = tmp_path / "grid.yaml"
    grid.write_text(yaml.safe_dump({"config": str(config), "rows": {"rca": {}}}))
    with pytest.raises(DataError, match=r"seed0/train\.pt: are not there"):
        run_frozen.main([str(grid), "--features", str(tmp_path), "--out", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()
