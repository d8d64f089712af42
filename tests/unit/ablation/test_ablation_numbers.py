"""Means, differences, thresholds and how the table words them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from ablate.grid import Grid, Row
from ablate.markdown import in_words
from ablate.progress import duration
from ablate.protocols import best, fixed
from ablate.prototypes import prototype_table
from ablate.publish import without_places
from ablate.spread import Spread, paired, ratio, spread
from ablate.summary import RowResults, Summary


def test_spread_is_that_of_a_sample():
    found = spread([1.0, 2.0, 6.0])
    assert found == Spread(3.0, pytest.approx(math.sqrt(7.0)), 1.0, 6.0, 3)
    assert spread([4.0]) == Spread(4.0, None, 4.0, 4.0, 1)
    assert spread([]) is None


def test_differences_are_taken_seed_by_seed():
    values, others = {0: 50.0, 1: 60.0, 2: 70.0}, {1: 59.0, 2: 66.0, 3: 0.0}
    assert paired(values, others) == Spread(2.5, pytest.approx(math.sqrt(4.5)), 1.0, 4.0, 2)
    assert paired(values, {7: 1.0}) is None


def test_cost_compares_shared_seeds_only():
    assert ratio({0: 3.0, 1: 5.0, 2: 100.0}, {0: 2.0, 1: 2.0}) == 2.0
    assert ratio({0: 3.0}, {1: 2.0}) is None
    assert ratio({}, {1: 2.0}) is None


TRAIN = {"curve": {"0.2": 0.3, "0.3": 0.5, "0.4": 0.5, "0.5": None}}
VAL = {"curve": {"0.2": 0.6, "0.3": 0.4, "0.4": 0.1}}


def test_best_threshold_is_the_lowest_of_equals():
    assert best(TRAIN) == {"threshold": 0.3, "miou": 0.5}
    assert best(VAL) == {"threshold": 0.2, "miou": 0.6}


def test_fixed_threshold_comes_from_elsewhere():
    scores = {"train": TRAIN, "val": VAL}
    assert fixed(scores, "val", "train") == {"threshold": 0.3, "miou": 0.4, "chosen_on": "train"}
    assert fixed(scores, "val", 0.4) == {"threshold": 0.4, "miou": 0.1, "chosen_on": None}
    assert fixed(scores, "val", 0.7) is None
    assert fixed({"val": VAL}, "val", "train") is None


@pytest.mark.parametrize(
    ("found", "signed", "text"),
    [
        (None, False, "-"),
        (Spread(50.04, None, 50.04, 50.04, 1), False, "50.0"),
        (Spread(50.5, 1.06, 49.2, 51.3, 3), False, "50.5 ± 1.1 (49.2..51.3)"),
        (Spread(50.5, 1.06, 49.2, 51.3, 5), False, "50.5 ± 1.1"),
        (Spread(2.5, 3.0, -0.5, 5.5, 2), True, "+2.5 ± 3.0 (-0.5..+5.5)"),
        (Spread(-2.5, None, -2.5, -2.5, 1), True, "-2.5"),
    ],
)
def test_numbers_in_words(found: Spread | None, signed: bool, text: str):
    assert in_words(found, signed=signed) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (59.7, "1 min 00 s"), (95, "1 min 35 s"), (4020, "1 h 07 min")]
)
def test_durations(seconds: float, text: str):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("text", "cleaned"),
    [
        ("--data.root=/home/me/VOC2012", "--data.root=VOC2012"),
        ("--data.root=/home/me/VOC2012/ --x=1", "--data.root=VOC2012 --x=1"),
        ("run.py experiments/a.yaml --out runs/ablation/a", "run.py experiments/a.yaml --out runs/ablation/a"),
        ("a '/x/y z'", "a 'y z'"),
        ("../shared/data ~/data https://host/a/b", "../shared/data ~/data https://host/a/b"),
        ("Intel(R) CPU @ 2.20GHz and/or", "Intel(R) CPU @ 2.20GHz and/or"),
        ("/weights.pth", "weights.pth"),
    ],
)
def test_paths_of_one_machine_are_shortened(text: str, cleaned: str):
    assert without_places(text) == cleaned


def result(row: str, seed: int, miou: float, cosine: float | None) -> dict[str, Any]:
    classes = {} if cosine is None else {"cat": {"mean_cosine": cosine, "coverage": 0.5}, "dog": {"mean_cosine": None}}
    return {"row": row, "seed": seed, "splits": {"train": {"curve": {"0.5": miou}}}, "diagnostics": classes}


def test_prototypes_are_told_beside_the_seeds():
    rows = {
        name: RowResults(
            Row(name, name.upper(), group, {}, None, (0, 1), ("train",)),
            {seed: result(name, seed, values[seed], cosine) for seed in values},
        )
        for name, group, values, cosine in (
            ("cam", "", {0: 0.4, 1: 0.4}, None),
            ("rca", "Method", {0: 0.5, 1: 0.6}, 0.25),
            ("gmm", "Clustering", {1: 0.63}, 0.75),
        )
    }
    grid = Grid(Path("g"), "G", (), {}, {name: found.row for name, found in rows.items()}, "cam", "rca", "train", False)
    table = prototype_table(Summary(grid, rows, []))
    assert table is not None
    lines = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")]
    assert [line[0] for line in lines[2:]] == ["Method: RCA", "Clustering: GMM"]
    by_name = {line[0]: dict(zip(lines[0], line, strict=True)) for line in lines[2:]}
    assert by_name["Method: RCA"]["mean cosine"] == "0.25"
    assert by_name["Method: RCA"]["train over RCA"] == ""
    assert by_name["Clustering: GMM"]["seeds"] == "1"
    assert by_name["Clustering: GMM"]["coverage"] == "0.50"
    assert by_name["Clustering: GMM"]["dead"] == "-"
    assert by_name["Clustering: GMM"]["train over RCA"] == "+3.0"
    del rows["rca"], rows["gmm"]
    assert prototype_table(Summary(grid, rows, [])) is None


def test_a_training_that_was_measured_in_part_tells_no_cost():
    whole, partly = {"cpu_seconds": 120.0, "complete": True}, {"cpu_seconds": 9.0, "complete": False}
    runs = {seed: {**result("cam", seed, 0.4, None), "fit": fit} for seed, fit in enumerate((whole, partly, None))}
    assert RowResults(Row("cam", "CAM", "", {}, None, (0, 1, 2), ("train",)), runs).cpu_minutes() == {0: 2.0}
