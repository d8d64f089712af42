"""Every row of every grid says what the parser of `rca` understands; nothing is built or run."""

from __future__ import annotations

from pathlib import Path

import pytest
from ablate.commandline import CommandLine, check_settings
from ablate.gridfile import load_grid
from ablate.jobs import choose
from ablate.preflight import check
from ablate.words import as_words

from rca_lightning.errors import ArgumentError, DataError

ROOT = Path(__file__).resolve().parents[3]
ABLATION = ROOT / "experiments" / "ablation"
GRIDS = {path.stem: load_grid(path) for path in sorted(ABLATION.glob("*.yaml"))}
ROWS = [(name, row) for name, grid in GRIDS.items() for row in grid.rows]


@pytest.fixture(autouse=True)
def at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_grids_are_found():
    assert set(GRIDS) == {"confirm", "frozen", "synthetic", "voc2012_mini"}
    assert len(ROWS) > 40


@pytest.mark.parametrize(("name", "row"), ROWS)
def test_row(name: str, row: str):
    grid = GRIDS[name]
    words = ["fit", *(f"--config={path}" for path in grid.config), *as_words(grid.overrides(row))]
    found = CommandLine().settings(words, whose=row)
    check_settings(found, grid.overrides(row), whose=row)
    assert found["data"]["dataset"] == {"synthetic": "synthetic"}.get(name, "voc2012")


def test_a_missing_configuration_is_named(tmp_path: Path):
    path = tmp_path / "grid.yaml"
    path.write_text("config: experiments/none.yaml\nrows: {rca: {}}\n")
    grid = load_grid(path)
    with pytest.raises(DataError, match=r"^configuration experiments/none\.yaml: is not there"):
        check(grid, choose(grid, None, None, None), tmp_path, [])


def test_what_the_reference_has_anyway_is_not_run_again(tmp_path: Path):
    grid = GRIDS["voc2012_mini"]
    prototypes = CommandLine().settings(["fit", f"--config={grid.config[0]}"], whose="rca")["model"]["num_prototypes"]
    checked = check(grid, choose(grid, ["K1", f"K{prototypes}"], None, None), tmp_path, [])
    assert checked.repeats == [f"K{prototypes}"]
    assert [run.row for run in checked.chosen] == ["K1"]
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
