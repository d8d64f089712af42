"""`run_frozen.py` from a trained plain CAM to the table."""

from __future__ import annotations

from pathlib import Path

import extract as extract_script
import pytest
import run_frozen
from ablate.markdown import markdown
from ablate.summary import read_results

from rca_lightning.cli.main import main as rca
from rca_lightning.errors import ArgumentError, DataError
from tests.integration.grids import result, without_dirpath, write_grid

pytestmark = pytest.mark.usefixtures("one_thread_at_the_root")


@pytest.fixture
def features(config: Path, tmp_path: Path) -> Path:
    rca(["fit", f"--config={config}", "--model.contrast=false", "--model.aggregation=false", "--trainer.max_epochs=1"])
    words = ["--config", str(config), "--ckpt_path", str(tmp_path / "run" / "last.ckpt"), "--scale", "1"]
    extract_script.main([*words, "--out", str(tmp_path / "features" / "seed0")])
    return tmp_path / "features"


def test_to_the_table(config: Path, features: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    out = tmp_path / "out"
    grid = write_grid(
        tmp_path,
        config=without_dirpath(config),
        splits=["train_a", "val"],
        halves=True,
        baseline="cam",
        reference="rca",
        common={"model.embedding_stages": 2},
        rows={
            "cam": {"set": {"model.contrast": False, "model.aggregation": False}},
            "rca": {},
            "impossible": {"set": {"model.embedding_stages": 3}},
            "coarse": {"fit": "rca", "set": {"model.final_map": "coarse"}},
        },
    )
    words = [str(grid), "--features", str(features), "--out", str(out), "--processes", "1"]
    assert run_frozen.main(words) == 1
    printed = capsys.readouterr().out
    assert "FAILED: impossible-seed0: embedding_stages" in printed
    assert {path.stem for path in (out / "results").iterdir()} == {"cam-seed0", "rca-seed0", "coarse-seed0"}
    found, coarse = result(out, "rca-seed0"), result(out, "coarse-seed0")
    assert found["prototypes"]["classes_with_one"] > 0
    assert sum(found["regions"].values()) > 0
    assert found["diagnostics"]
    assert found["splits"]["train_a"]["images"] == 12
    assert found["fit"]["cpu_seconds"] > 0
    assert coarse["checkpoint_of"] == "rca"
    assert coarse["splits"]["val"]["curve"] != found["splits"]["val"]["curve"]

    before = (out / "results" / "rca-seed0.json").stat().st_mtime_ns
    run_frozen.main([*words, "--rows", "cam,rca"])
    assert "all done" in capsys.readouterr().out
    assert (out / "results" / "rca-seed0.json").stat().st_mtime_ns == before
    table = markdown(read_results(out))
    assert "train_a" in table
    assert "Not run: impossible" in table


def test_missing_features_are_named_before_anything_runs(config: Path, tmp_path: Path):
    grid = write_grid(tmp_path, config=without_dirpath(config), rows={"rca": {}})
    with pytest.raises(DataError, match=r"seed0/train\.pt: are not there"):
        run_frozen.main([str(grid), "--features", str(tmp_path), "--out", str(tmp_path / "out")])
    with pytest.raises(ArgumentError, match=r"^seeds=\[7\]: "):
        run_frozen.main([str(grid), "--features", str(tmp_path), "--out", str(tmp_path / "out"), "--seeds", "7"])
    assert not (tmp_path / "out").exists()
