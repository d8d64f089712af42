"""The table and the JSON file of `rca validate`."""

from __future__ import annotations

import io
import json
import math

import pytest
from rich.console import Console

from rca_lightning.evaluation.report import print_report, write_report


def result(**changes) -> dict:
    return {
        "split": "val",
        "images": 12,
        "tags": "image",
        "threshold": 0.25,
        "miou": 0.4056,
        "curve": {"0.25": 0.4056},
        "per_class_iou": {"background": 0.7512, "cat": None},
        "per_class_precision": {"background": 0.8123, "cat": None},
        "per_class_recall": {"background": 0.9034, "cat": 0.0},
        "classification_map": 0.6543,
        **changes,
    }


def printed(**changes) -> list[str]:
    stream = io.StringIO()
    print_report(result(**changes), Console(file=stream, width=100))
    return stream.getvalue().splitlines()


def row(lines: list[str], name: str) -> list[str]:
    (line,) = [line for line in lines if f" {name} " in line and ("│" in line or "|" in line)]
    return line.replace("|", "│").strip("│ ").replace("│", " ").split()


def test_table_has_percentages_by_class_and_the_mean():
    lines = printed()
    assert row(lines, "background") == ["background", "75.1", "81.2", "90.3"]
    assert row(lines, "cat") == ["cat", "-", "-", "0.0"]
    assert row(lines, "mean") == ["mean", "40.6"]
    assert "background threshold 0.25, classification mAP 65.4" in lines[-1]


@pytest.mark.parametrize(("tags", "words"), [("image", "true tags"), ("predicted", "predicted tags")])
def test_title_says_of_what_the_scores_are(tags, words):
    title = " ".join(" ".join(printed(tags=tags)[:2]).split())
    assert "'val'" in title
    assert "12 images" in title
    assert words in title


def test_missing_map_is_a_dash():
    assert printed(classification_map=None)[-1].endswith("mAP -")


def test_guesses_without_a_network_stand_below_the_score():
    guesses = {"disc": {"miou": 0.2519, "radius": 0.6, "tag": "last"}, "tag_prior": {"miou": 0.264, "threshold": 0.24}}
    assert printed(without_network=guesses)[-1] == "without a network, true tags: disc 25.2, tag prior 26.4"
    assert not any("without a network" in line for line in printed())


@pytest.mark.parametrize("name", ["[bold]", "a[/red]", ":car:"])
def test_class_names_are_no_markup(name):
    per_class = {name: 0.5}
    lines = printed(per_class_iou=per_class, per_class_precision=per_class, per_class_recall=per_class)
    assert any(name in line for line in lines)


def test_json_file_holds_the_result(tmp_path):
    path = tmp_path / "new" / "validate.json"
    write_report(result(), path)
    assert json.loads(path.read_text()) == result()
    assert path.read_text().endswith("}\n")


def test_nan_never_reaches_the_file(tmp_path):
    path = tmp_path / "validate.json"
    write_report(result(), path)
    with pytest.raises(ValueError, match="JSON"):
        write_report(result(miou=math.nan), path)
    assert json.loads(path.read_text()) == result()
