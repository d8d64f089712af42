"""A grid says what is run; what is wrong with it is named before anything runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from ablate.gridfile import load_grid

from rca_lightning.errors import DataError

ROWS: dict[str, Any] = {
    "cam": {"title": "plain CAM", "set": {"model.contrast": False, "model.aggregation": False}},
    "rca": {"seeds": [0, 1, 2]},
    "coarse": {"fit": "rca", "set": {"model.final_map": "coarse"}, "group": "map"},
    "coarse-flat": {"fit": "coarse", "set": {"model.flip": False}, "splits": ["val_a"]},
}


def write(folder: Path, **content: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"config": "a.yaml", "rows": ROWS, **content}, sort_keys=False))
    return path


def test_rows_take_what_they_do_not_say_from_the_grid(tmp_path: Path):
    path = write(tmp_path, seeds=[0, 1], splits=["train", "val"], common={"memory.slots": 100}, halves=True)
    grid = load_grid(path)
    assert (grid.config, grid.baseline, grid.reference, grid.title) == (("a.yaml",), "cam", None, "grid")
    assert grid.fixed_threshold == "train"  # the first split
    assert grid.rows["cam"].seeds == (0, 1)
    assert grid.rows["rca"].seeds == (0, 1, 2)
    assert (grid.rows["rca"].title, grid.rows["cam"].title) == ("rca", "plain CAM")
    assert grid.rows["coarse"].splits == ("train", "val")
    assert grid.rows["coarse-flat"].splits == ("val_a",)
    assert [grid.half_of(split) for split in ("val_a", "train_b", "val", "a")] == ["val", "train", None, None]


def test_reading_rows_stack_their_settings_on_the_row_that_trained(tmp_path: Path):
    grid = load_grid(write(tmp_path, common={"memory.slots": 100, "model.flip": True}))
    assert [grid.fitted_row(name).name for name in ROWS] == ["cam", "rca", "rca", "rca"]
    assert grid.overrides("coarse") == {"memory.slots": 100, "model.flip": True, "model.final_map": "coarse"}
    assert grid.overrides("coarse-flat") == {"memory.slots": 100, "model.flip": False, "model.final_map": "coarse"}


def test_without_halves_an_ending_means_nothing(tmp_path: Path):
    assert load_grid(write(tmp_path)).half_of("train_a") is None


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"rows": {}}, "rows: must be there and not be empty"),
        ({"config": None}, "config: must be there"),
        ({"config": [3]}, "config: is [3]"),
        ({"sedes": [0]}, "sedes: is no key here"),
        ({"rows": {"a": {"sett": {}}}}, "rows.a.sett: is no key here"),
        ({"rows": {"a": "b"}}, "rows.a: is 'b'"),
        ({"rows": {5: {}}}, "rows.5: names become file names"),
        ({"rows": {"../a": {}}}, "rows.../a: names become file names"),
        ({"rows": {"a": {"fit": "b"}}}, "rows.a.fit: there is no row 'b'; there are a"),
        ({"rows": {"a": {"fit": ["b"]}}}, "rows.a.fit: there is no row"),
        ({"rows": {"a": {"fit": "b"}, "b": {"fit": "a"}}}, "rows.b.fit: goes round in a circle: a -> b -> a"),
        ({"rows": {"a": {"fit": "a"}}}, "rows.a.fit: goes round in a circle: a -> a"),
        ({"rows": {"a": {"seeds": [0]}, "b": {"fit": "a", "seeds": [0, 7]}}}, "rows.b.seeds: row 'a', whose"),
        ({"rows": {"a": {"set": {"num_prototypes": 3}}}}, "rows.a.set.num_prototypes: is no key of the command line"),
        ({"common": {"data.eval_split": "val"}}, "common.data.eval_split: is set by the tool itself"),
        ({"seeds": []}, "seeds: is []"),
        ({"seeds": [0, 0]}, "seeds: is [0, 0]"),
        ({"seeds": [True]}, "seeds: is [True]"),
        ({"seeds": 3}, "seeds: is 3"),
        ({"splits": ["a/b"]}, "splits: is ['a/b']"),
        ({"baseline": "CAM"}, "baseline: there is no row 'CAM'"),
        ({"reference": "RCA"}, "reference: there is no row 'RCA'"),
        ({"halves": "yes please"}, "halves: is 'yes please'"),
        ({"fixed_threshold": 0.33}, "fixed_threshold: is 0.33"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, content: dict[str, Any], message: str):
    path = write(tmp_path, **content)
    with pytest.raises(DataError) as caught:
        load_grid(path)
    assert str(caught.value).startswith(f"grid {path}: {message}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rows: {a: {}, b: {}, a: {}}", "the key 'a' is there already"),
        ("rows: {a", "is no valid YAML"),
        ("- a", "must hold keys and values"),
        ("", "must hold keys and values"),
    ],
)
def test_files_that_are_no_grid(tmp_path: Path, text: str, message: str):
    path = tmp_path / "grid.yaml"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load_grid(path)
    with pytest.raises(DataError, match="cannot be read"):
        load_grid(tmp_path / "none.yaml")
