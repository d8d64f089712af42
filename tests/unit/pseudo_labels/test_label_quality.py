"""Confidence and reasons without a mask, and the list of images for a human look."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from rca_lightning.pseudo_labels import quality
from rca_lightning.pseudo_labels.quality import LabelQuality, label_confidence, label_quality, quality_report

CLASSES = torch.tensor([4, 0])
NAMES = ["cat", "dog", "cow", "car", "bus"]
H, W = 6, 9


def random_case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """A label in which every value occurs, and evidence that is independent of it."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.tensor([0, 5, 1, 255], dtype=torch.uint8)
    return values[torch.randint(0, 4, (H, W), generator=generator)], torch.rand(3, H, W, generator=generator)


def looped(label: torch.Tensor, evidence: torch.Tensor) -> float:
    means = []
    for channel, value in enumerate((0, 5, 1)):
        shares = []
        for row in range(H):
            for column in range(W):
                if label[row, column] == value:
                    scores = [float(score) for score in evidence[:, row, column].double()]
                    shares.append(scores[channel] / sum(scores))
        means.append(sum(shares) / len(shares))
    return sum(means) / 3


def some_quality(image_id: str = "a", **changes) -> LabelQuality:
    values = {
        "confidence": 0.5,
        "classes": (4, 0),
        "coverage": (0.2, 0.3),
        "probabilities": (0.9, 0.6),
        "ignored": 0.1,
    }
    return LabelQuality(image_id=image_id, **{**values, **changes})


@pytest.mark.parametrize("seed", range(3))
def test_confidence_equals_a_plain_loop(seed):
    label, evidence = random_case(seed)
    assert label_confidence(label, evidence, CLASSES) == pytest.approx(looped(label, evidence), rel=1e-6)


def test_confidence_does_not_depend_on_order_side_or_scale():
    label, evidence = random_case()
    found = label_confidence(label, evidence, CLASSES)
    same = [
        (label, evidence[[0, 2, 1]], CLASSES.flip(0)),
        (label.flip(1), evidence.flip(2), CLASSES),
        (label.T, evidence.transpose(1, 2), CLASSES),
        (label, 0.5 * evidence, CLASSES),
        (label.repeat(2, 1), evidence.repeat(1, 2, 1), CLASSES),
        (label.long(), evidence.double(), CLASSES.int()),
    ]
    for case in same:
        assert label_confidence(*case) == pytest.approx(found, rel=1e-5)
    assert label_confidence(label, evidence[[1, 0, 2]], CLASSES) != pytest.approx(found, rel=1e-3)


def test_a_small_object_counts_as_much_as_a_wide_background():
    label = torch.zeros(10, 10, dtype=torch.uint8)
    label[0, 0] = 5
    evidence = torch.tensor([0.9, 0.1])[:, None, None].repeat(1, 10, 10)
    evidence[:, 0, 0] = torch.tensor([0.7, 0.3])
    assert label_confidence(label, evidence, CLASSES[:1]) == pytest.approx((0.9 + 0.3) / 2)


def test_undecided_pixels_do_not_count():
    label, evidence = random_case()
    changed = torch.where(label == 255, torch.rand(3, H, W), evidence)
    assert label_confidence(label, changed, CLASSES) == label_confidence(label, evidence, CLASSES)


def test_confidence_goes_from_0_to_1():
    label, _ = random_case()
    own = torch.stack([label == value for value in (0, 5, 1)]).float()
    assert label_confidence(label, own, CLASSES) == 1
    assert label_confidence(label, 1 - own, CLASSES) == 0
    assert label_confidence(label, torch.ones(3, H, W), CLASSES) == pytest.approx(1 / 3)
    assert label_confidence(label, torch.zeros(3, H, W), CLASSES) == 0


def test_a_class_that_is_not_drawn_counts_as_0_but_no_background_is_no_fault():
    evidence = torch.ones(3, H, W)
    full = torch.full((H, W), 5, dtype=torch.uint8)
    assert label_confidence(full, evidence, CLASSES) == pytest.approx((1 / 3 + 0) / 2)
    assert label_confidence(full, evidence[:2], CLASSES[:1]) == pytest.approx(1 / 2)
    assert label_confidence(torch.zeros_like(full), evidence, CLASSES) == pytest.approx((1 / 3 + 0 + 0) / 3)
    assert label_confidence(torch.full_like(full, 255), evidence, CLASSES) == 0


def test_without_a_class_there_is_no_confidence():
    nothing = torch.zeros(0, dtype=torch.int64)
    assert label_confidence(torch.zeros(H, W, dtype=torch.uint8), torch.ones(1, H, W), nothing) == 0


def test_quality_of_a_label_is_counted_on_it():
    label, evidence = random_case()
    found = label_quality("a.b", label, evidence, CLASSES, torch.tensor([0.25, 0.75]))
    counts = dict(zip(*np.unique(label.numpy(), return_counts=True), strict=True))
    assert (found.image_id, found.classes, found.probabilities) == ("a.b", (4, 0), (0.25, 0.75))
    assert found.coverage == pytest.approx((counts[5] / (H * W), counts[1] / (H * W)))
    assert found.ignored == pytest.approx(counts[255] / (H * W))
    assert found.confidence == label_confidence(label, evidence, CLASSES)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, []),
        ({"coverage": (0.2, 0.0019)}, ["cat is hardly drawn"]),
        ({"coverage": (0.2, 0.0021)}, []),
        ({"probabilities": (0.49, 0.6)}, ["the network doubts bus (0.49)"]),
        ({"probabilities": (0.5, 0.6)}, []),
        (
            {"coverage": (0.0, 0.3), "probabilities": (0.1, 0.2)},
            ["bus is hardly drawn", "the network doubts bus (0.10)", "the network doubts cat (0.20)"],
        ),
        ({"coverage": (0.5, 0.49)}, ["no background"]),
        ({"coverage": (0.5, 0.47)}, []),
        ({"classes": (), "coverage": (), "probabilities": ()}, ["no class"]),
        ({"ignored": 0.51}, ["51 % undecided"]),
        ({"ignored": 0.5}, []),
    ],
)
def test_reasons(changes, expected):
    assert some_quality(**changes).reasons(NAMES) == expected


def test_how_much_doubt_is_odd_can_be_said():
    label = some_quality(probabilities=(0.9, 0.7))
    assert label.reasons(NAMES, doubted=0.8) == ["the network doubts cat (0.70)"]


def test_odd_labels_come_first_then_the_least_sure():
    labels = [
        some_quality("sure", confidence=0.9),
        some_quality("twin_b", confidence=0.4),
        some_quality("odd_but_sure", confidence=0.95, ignored=0.8),
        some_quality("twin_a", confidence=0.4),
        some_quality("odd", confidence=0.2, coverage=(0.0, 0.3)),
    ]
    report = quality_report(labels, NAMES)
    assert [entry["image_id"] for entry in report["look_at"]] == ["odd", "odd_but_sure", "twin_a", "twin_b", "sure"]
    assert report["look_at"][0] == {"image_id": "odd", "confidence": 0.2, "reasons": ["bus is hardly drawn"]}
    assert (report["images"], report["odd"]) == (5, 2)
    assert json.loads(json.dumps(report, allow_nan=False)) == report


def test_spread_of_the_confidence():
    values = np.random.default_rng(0).random(37)
    found = quality_report([some_quality(str(value), confidence=value) for value in values], NAMES)["confidence"]
    assert list(found) == ["mean", "10 %", "median", "90 %"]
    assert list(found.values()) == pytest.approx([values.mean(), *np.quantile(values, [0.1, 0.5, 0.9])])


def test_the_list_is_no_longer_than_a_human_can_look(monkeypatch):
    monkeypatch.setattr(quality, "LOOK_AT", 3)
    labels = [some_quality(str(number), confidence=number / 10) for number in range(9, 0, -1)]
    report = quality_report(labels, NAMES)
    assert [entry["image_id"] for entry in report["look_at"]] == ["1", "2", "3"]
    assert report["images"] == 9


def test_report_of_no_label_is_json_too():
    report = quality_report([], NAMES)
    assert json.loads(json.dumps(report, allow_nan=False)) == {
        "images": 0,
        "confidence": {"mean": None, "10 %": None, "median": None, "90 %": None},
        "odd": 0,
        "look_at": [],
    }
