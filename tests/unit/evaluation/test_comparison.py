"""Two score files: what may be compared, what is told, and what is refused."""

from __future__ import annotations

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from tests.unit.evaluation.counted_images import NAMES, count_labels, count_seeds, drawn, label_pairs, seed_images

from rca_lightning.errors import ArgumentError, DataError, RCAError, ResultsError
from rca_lightning.evaluation.comparison import (
    ScoreFile,
    compare_files,
    images_file,
    protocol_differences,
    protocol_name,
)
from rca_lightning.evaluation.image_counts import ImageCounts
from rca_lightning.evaluation.intervals import paired_difference
from rca_lightning.evaluation.label_iou import confusion_scores
from rca_lightning.evaluation.protocol import make_protocol, supervision_used
from rca_lightning.evaluation.report import Scores, write_report
from rca_lightning.evaluation.seed_iou import table_scores

TRAINING = {"seed_dir": False, "masks": False}
NOTHING = supervision_used(tags=None, settings={}, training=TRAINING)
VIEWS = {"scales": [1.0], "flip": True, "max_side": 640, "final_map": "attention"}


def scores_of(counts: ImageCounts, threshold: float | None = None) -> Scores:
    table = torch.from_numpy(counts.table())
    if threshold is None:
        found = confusion_scores(table, images=len(counts.ids))
    else:
        found = table_scores(table, counts.thresholds, threshold, images=len(counts.ids))
    found.image_counts = counts
    return found


def write(path: Path, counts: ImageCounts, *, at: float | None = None, **changes) -> Path:
    """A score file and its counts, as `rca validate` writes them."""
    supervision = supervision_used(tags=changes.pop("tags", None), settings={}, training=TRAINING)
    options = {"split": "val", "ids": counts.ids, "supervision": supervision, "settings": VIEWS}
    if at is not None:
        options["threshold"] = "default"
    protocol = make_protocol(**(options | changes))
    content = scores_of(counts, at).as_dict(split="val", class_names=NAMES, protocol=protocol)
    counts.save(images_file(path))
    write_report(content, path)
    return path


def compared(*paths: Path, width: int = 80, **options) -> str:
    stream = io.StringIO()
    compare_files(*paths, console=Console(file=stream, width=width), **options)
    return stream.getvalue()


@pytest.fixture
def pair(tmp_path) -> tuple[Path, Path]:
    one = write(tmp_path / "a.json", count_labels(label_pairs(8, agreement=0.6)))
    return one, write(tmp_path / "b.json", count_labels(label_pairs(8, seed=1, agreement=0.8)))


def test_difference_has_its_paired_interval_and_every_class(pair):
    text = compared(*pair)
    counts = [ImageCounts.load(images_file(path)) for path in pair]
    found = paired_difference(*counts, (None, None))
    ends = f"{100 * found.low:+.1f} to {100 * found.high:+.1f}"
    assert f"b - a: {100 * found.value:+.1f} mIoU, 95 % interval {ends}\n" in text
    assert "(paired bootstrap, 1000 draws of 8 images)" in text
    assert "the protocols are the same" in text
    one, other = (json.loads(path.read_text())["per_class_iou"] for path in pair)
    for name in ["background", *NAMES]:
        (row,) = [line for line in text.splitlines() if f" {name} " in line]
        numbers = [f"{100 * one[name]:.1f}", f"{100 * other[name]:.1f}", f"{100 * (other[name] - one[name]):+.1f}"]
        assert row.replace("│", " ").replace("|", " ").split() == [name, *numbers]
    lines = [line for line in text.splitlines() if not line.startswith(("a: ", "b: "))]  # paths may be long
    assert max(map(len, lines)) <= 80


def test_a_run_differs_from_itself_by_nothing(pair):
    assert "b - a: +0.0 mIoU, 95 % interval +0.0 to +0.0\n" in compared(pair[0], pair[0])


def test_seeds_are_paired_each_at_its_own_threshold_and_the_oracle_is_told(tmp_path):
    counts = count_seeds(seed_images(6))
    one, other = (write(tmp_path / f"{t}.json", counts, at=t) for t in (0.5, 0.7))
    text = compared(one, other)
    found = paired_difference(counts, counts, (0.5, 0.7))
    assert f"b - a: {100 * found.value:+.1f} mIoU" in text
    best = scores_of(counts, 0.5)
    assert f"at threshold 0.5, oracle {100 * best.oracle_miou:.1f} at {best.oracle_threshold:g}" in text


def test_seeds_at_a_default_and_labels_without_a_threshold_are_alike(tmp_path):
    images = seed_images(6)
    one = write(tmp_path / "a.json", count_seeds(images), at=0.5)
    other = write(tmp_path / "b.json", count_labels([(drawn(maps, 0.5), mask.numpy()) for maps, mask in images]))
    text = compared(one, other)
    assert "b - a: +0.0 mIoU, 95 % interval +0.0 to +0.0\n" in text
    assert 'differs too: threshold: "default" and null' in text


UNFAIR = {
    "split.name": {"split": "train"},
    "supervision.tags": {"tags": "image"},
    "supervision.saliency": {"supervision": {**NOTHING, "saliency": True}},
    "supervision.prompts": {"supervision": {**NOTHING, "prompts": True}},
    "supervision.masks": {"supervision": {**NOTHING, "masks": True}},
    "scales": {"settings": VIEWS | {"scales": [1.0, 1.5]}},
    "flip": {"settings": VIEWS | {"flip": False}},
    "max_side": {"settings": VIEWS | {"max_side": 1280}},
    "crf": {"settings": VIEWS | {"crf": True}},
    "refine": {"refine": ["pamr"]},
    "threshold": {"threshold": "masks", "threshold_split": "train_a"},
    "background.kind": {"background": {"background": "power", "power": 8.0}},
    "tag_threshold.chosen": {"tag_threshold": {"chosen": "given", "value": 0.3}},
}


@pytest.mark.parametrize("name", UNFAIR)
def test_scores_that_were_not_made_alike_are_refused_one_line_each(name, pair):
    other = write(pair[1], count_labels(label_pairs(8, seed=1)), **UNFAIR[name])
    with pytest.raises(ResultsError) as refused:
        compared(pair[0], other)
    first, *reasons = str(refused.value).splitlines()
    assert "--anyway" in first
    assert [line.split(":")[0].strip() for line in reasons] == [name]
    text = compared(pair[0], other, anyway=True)
    assert "NOT A FAIR COMPARISON (1 difference" in text
    assert f"differs, so the comparison is not fair: {name}: " in text


def test_tools_and_files_that_differ_are_only_told(pair):
    changes = {
        "settings": VIEWS | {"final_map": "coarse"},
        "checkpoint": {"file": "last.ckpt", "sha256": "0" * 64},
        "weights": {"file": "resnet50.pth", "sha256": "1" * 64},
    }
    other = write(pair[1], count_labels(label_pairs(8, seed=1)), **changes)
    content = json.loads(other.read_text())
    content["protocol"]["versions"]["torch"] = "1.0"
    content["protocol"]["commit"] = "f" * 40
    other.write_text(json.dumps(content))
    text = compared(pair[0], other)
    told = [line.split(":")[1].strip() for line in text.splitlines() if line.startswith("differs too")]
    names = ("checkpoint", "weights")
    expected = {"commit", "final_map", "versions.torch", *(f"{n}.{part}" for n in names for part in ("file", "sha256"))}
    assert set(told) - set(names) == expected
    assert "FAIR" not in text


def test_other_images_have_no_interval_and_are_no_fair_comparison(tmp_path, pair):
    other = write(tmp_path / "c.json", count_labels(label_pairs(9)))
    with pytest.raises(ResultsError, match=r"split\.ids_sha256: .*\n  split\.images: 8 and 9"):
        compared(pair[0], other)
    text = compared(pair[0], other, anyway=True)
    assert "no interval: the images are not the same" in text


def test_without_counts_a_line_says_why_there_is_no_interval(pair):
    images_file(pair[1]).unlink()
    text = compared(*pair)
    assert "no interval: " in text
    assert "b_images.npz is not there" in text.replace("\n", "")
    assert "b - a: +" in text


@pytest.mark.parametrize("pairs", [label_pairs(5), label_pairs(8, seed=9)])
def test_counts_of_another_run_are_not_paired(pair, pairs):
    count_labels(pairs).save(images_file(pair[1]))
    assert "is of another run than b.json" in " ".join(compared(*pair).split())


def test_what_an_older_checkpoint_does_not_know_is_told(pair):
    other = write(pair[1], count_labels(label_pairs(8, seed=1)), supervision={**NOTHING, "masks": None})
    assert "differs too: supervision.masks: false and null" in compared(pair[0], other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "no JSON could be read"),
        ("[" * 100_000, "no JSON could be read"),
        ("[]", "no score file"),
        ('{"split": "val"}', "no score file"),
        ('{"split": "val", "images": 3, "miou": "x", "per_class_iou": {"a": 1}, "protocol": {}}', "no score file"),
        ('{"split": "val", "images": 3, "miou": 0.5, "per_class_iou": {"a": 7}, "protocol": {}}', "no score file"),
        ('{"split": "val", "images": 3, "miou": 0.5, "per_class_iou": {}, "protocol": {}}', "no score file"),
        ('{"split": "val", "images": [], "miou": 0.5, "per_class_iou": {"a": 1}, "protocol": {}}', "no score file"),
        (
            '{"split": 1, "images": 3, "miou": 1, "threshold": "x", "per_class_iou": {"a": 1}, "protocol": {}}',
            "no score",
        ),
        ('{"split": "val", "images": 3, "miou": 0.5, "per_class_iou": {"a": 1}}', "no protocol, as older versions"),
    ],
)
def test_other_files_are_refused_in_one_line(content, message, pair, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(content)
    for files in ((path, pair[0]), (pair[0], path)):
        with pytest.raises(DataError, match=message) as refused:
            compared(*files)
        assert str(refused.value).startswith(str(path))
        assert "\n" not in str(refused.value)


def test_missing_files_and_folders_are_named(pair, tmp_path):
    with pytest.raises(ArgumentError, match=r"file='.*none\.json': there is no such file"):
        compared(tmp_path / "none.json", pair[0])
    with pytest.raises(ArgumentError, match="this is a folder"):
        ScoreFile.read(tmp_path)


def test_other_classes_are_refused(pair):
    content = json.loads(pair[1].read_text())
    content["per_class_iou"] = {"background": 0.5, "cat": 0.5, "cow": 0.5, "dog": 0.5}
    pair[1].write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"b\.json: class 2 is 'cow', 'dog' in .*a\.json"):
        compared(*pair, anyway=True)


def test_damaged_counts_are_one_error(pair):
    images_file(pair[1]).write_bytes(b"PK")
    with pytest.raises(RCAError, match="score again"):
        compared(*pair)


def test_scores_without_a_value_have_no_difference(tmp_path):
    void = (np.ones((2, 2), dtype=np.int64), np.full((2, 2), 255))
    path = write(tmp_path / "a.json", count_labels([void]))
    assert "b - a: one has no mIoU" in compared(path, path)


def seeds_at(threshold: float, source: str, **changes) -> dict:
    options = {"split": "val", "ids": ["a"], "supervision": NOTHING, "settings": VIEWS, "threshold": source}
    background = {"background_threshold": threshold}
    return make_protocol(**(options | {"background": background, "map_kind": "CAM"} | changes))


def test_numbers_that_were_chosen_alike_are_told():
    one, other = seeds_at(0.3, "given"), seeds_at(0.4, "given", map_kind="RCA attention")
    unfair, told = protocol_differences(one, other)
    assert unfair == []
    assert told == ["background.background_threshold: 0.3 and 0.4", 'maps.kind: "CAM" and "RCA attention"']


def test_whether_masks_chose_is_told_in_one_line():
    unfair, told = protocol_differences(seeds_at(0.3, "default"), seeds_at(0.3, "masks", threshold_split="val"))
    assert unfair == ['threshold: "default" and "masks of val"']
    assert told == []


def test_tags_predicted_above_a_calibrated_and_a_default_threshold_are_alike():
    chosen = [{"chosen": "calibrated", "value": None}, {"chosen": "default", "value": 0.5}, None]
    for one in chosen:
        for other in chosen:
            found = [seeds_at(0.3, "default", tag_threshold=entry) for entry in (one, other)]
            assert protocol_differences(*found)[0] == []
            assert protocol_name(found[0]) == protocol_name(found[1])


OLDER = ("background", "tag_threshold", "maps")


def test_what_an_older_file_does_not_say_is_named_and_no_reason_to_refuse(pair):
    new = write(pair[0], count_labels(label_pairs(8)), background={"background_threshold": 0.4}, map_kind="CAM")
    content = json.loads(pair[1].read_text())
    for name in OLDER:
        del content["protocol"][name]
    pair[1].write_text(json.dumps(content))
    for files, place in (((new, pair[1]), "second"), ((pair[1], new), "first")):
        text = compared(*files)
        for name in OLDER:
            assert f"differs too: {name}: not recorded in the {place} file\n" in text
        assert "FAIR" not in text


@pytest.mark.parametrize("name", UNFAIR)
def test_protocols_have_one_name_if_scores_of_them_may_be_compared(name):
    options = {"split": "val", "ids": ["a"], "supervision": NOTHING, "settings": VIEWS}
    changes = dict(UNFAIR[name])
    if "tags" in changes:
        changes = {"supervision": {**NOTHING, "tags": changes["tags"]}}
    first, other = make_protocol(**options), make_protocol(**(options | changes))
    assert protocol_name(first) != protocol_name(other)
    told = {"checkpoint": {"file": "a", "sha256": None}, "map_kind": "CAM", "threshold": "auto"}
    alike = make_protocol(**options, **told, background={"background_threshold": 0.4}) | {"commit": "c" * 40}
    assert protocol_differences(first, alike)[0] == []
    assert protocol_name(first).split(", ")[-1] == protocol_name(alike).split(", ")[-1]


def test_name_of_a_protocol_reads():
    found = seeds_at(0.4, "auto", supervision={**NOTHING, "tags": "mixed"})
    assert re.fullmatch("val, 1 images, true tags of some, threshold auto, [0-9a-f]{8}", protocol_name(found))


@pytest.mark.parametrize("value", ["x", [1], 3, {"a": {"b": [1]}}, None])
@pytest.mark.parametrize("name", ["supervision", "threshold", "background", "tag_threshold", "split", "maps"])
def test_entries_of_another_form_are_differences(pair, name, value):
    content = json.loads(pair[1].read_text())
    content["protocol"][name] = value
    pair[1].write_text(json.dumps(content))
    assert "b - a: " in compared(*pair, anyway=True)
    assert "the protocols are the same" in compared(pair[1], pair[1])
    assert protocol_name(content["protocol"])


def run_of(path: Path, scores: Path) -> Path:
    """`run.json` of `rca masks`, with the scores of a file."""
    path.parent.mkdir()
    path.write_text(json.dumps({"command": [], "scores": json.loads(scores.read_text())}))
    images_file(path).write_bytes(images_file(scores).read_bytes())
    return path


def test_runs_of_rca_masks_are_compared_by_their_scores(pair, tmp_path):
    runs = [run_of(tmp_path / name / "run.json", path) for name, path in zip("ab", pair, strict=True)]
    assert compared(*runs).splitlines()[1:2] + compared(*runs).splitlines()[3:] == (
        compared(*pair).splitlines()[1:2] + compared(*pair).splitlines()[3:]
    )
    assert "95 % interval" in compared(*runs)
    assert "b - a: +0.0 mIoU" in compared(runs[0], pair[0])


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        (None, "rca masks had no masks to score with; run it again with --masks"),
        ({"miou": 0.5, "iou": {"background": 0.5}}, "says no protocol, as older versions wrote none; run rca masks"),
        ({"protocol": {}}, "this is no score file"),
        ([1], "this is no score file"),
    ],
)
def test_a_run_without_a_score_is_one_line(scores, message, pair, tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"scores": scores}))
    with pytest.raises(DataError, match=message) as refused:
        compared(pair[0], path)
    assert str(refused.value).startswith(str(path))


def test_an_entry_that_only_one_protocol_has_is_a_difference():
    unfair, told = protocol_differences({"new": 1, "commit": "a"}, {"commit": None})
    assert unfair == ["new: not recorded in the second file"]
    assert told == ['commit: "a" and null']
