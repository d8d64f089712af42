"""Every row of every grid says what the parser of `rca` understands; nothing is built or run."""

from __future__ import annotations

from pathlib import Path

import pytest
from ablate.commandline import CommandLine
from ablate.gridfile import load_grid
from ablate.jobs import choose
from ablate.preflight import check

from rca_lightning.errors import ArgumentError

ROOT = Path(__file__).resolve().parents[3]
ABLATION = ROOT / "experiments" / "ablation"
GRIDS = {path.stem: load_grid(path) for path in sorted(ABLATION.glob("*.yaml"))}
ROWS = [(name, row) for name, grid in GRIDS.items() for row in grid.rows]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_grids_are_found():
    assert set(GRIDS) == {"confirm", "synthetic", "voc2012_mini"}
    assert len(ROWS) > 40


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_row(name: str, row: str, tmp_path: Path):
    grid = GRIDS[name]
    checked = check(grid, choose(grid, [row], None, None), tmp_path, [])
    assert set(checked.settings) == {row, grid.fitted_row(row).name}
    assert checked.settings[row]["data"]["dataset"] == {"synthetic": "synthetic"}.get(name, "voc2012")
    assert [run.row for run in checked.chosen] == ([] if checked.repeats else [row] * len(grid.rows[row].seeds))


def test_what_the_reference_has_anyway_is_not_run_again(tmp_path: Path):
    grid = GRIDS["voc2012_mini"]
    prototypes = CommandLine().settings(["fit", f"--config={grid.config[0]}"], whose="rca")["model"]["num_prototypes"]
    rows = [name for name in grid.rows if name.startswith("K")]
    assert f"K{prototypes}" in rows
    assert check(grid, choose(grid, rows, None, None), tmp_path, []).repeats == [f"K{prototypes}"]
    # With another number for every run the rows still say their own.
    typed = check(grid, choose(grid, ["rca"], None, None), tmp_path, ["--model.num_prototypes=7"])
    assert typed.settings["rca"]["model"]["num_prototypes"] == 7
    assert typed.repeats == []


@pytest.mark.parametrize(
    ("word", "problem"),
    [
        ("--model.nonsense=3", "unrecognized arguments: --model.nonsense=3"),
        ("--model.num_prototypes=x", "num_prototypes"),
        ("--trainer.callbacks=null", "trainer.callbacks needs a ModelCheckpoint"),
    ],
)
def test_words_that_the_parser_refuses(tmp_path: Path, word: str, problem: str):
    grid = GRIDS["confirm"]
    with pytest.raises(ArgumentError) as caught:
        check(grid, choose(grid, ["cam"], [0], None), tmp_path, [word])
    assert str(caught.value).startswith("row='cam': ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
