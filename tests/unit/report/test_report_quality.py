"""Quality of a mask without true masks, against plain loops, and the reasons to look."""

from __future__ import annotations

import numpy as np
import pytest

from rca_lightning.errors import ArgumentError
from rca_lightning.report.quality import margin_quality, reasons_to_look, tied_classes


def looped(maps, threshold: float) -> float:
    """`margin_quality` pixel by pixel."""
    sums, counts = [0.0] * (len(maps) + 1), [0] * (len(maps) + 1)
    for y in range(maps.shape[1]):
        for x in range(maps.shape[2]):
            scores = [threshold, *(float(one[y, x]) for one in maps)]
            winner = max(range(len(scores)), key=lambda place: scores[place])
            rest = max(score for place, score in enumerate(scores) if place != winner)
            sums[winner] += (scores[winner] - rest) / (threshold if winner == 0 else 1 - threshold)
            counts[winner] += 1
    means = [total / count if count else 0.0 for total, count in zip(sums, counts, strict=True)]
    if not counts[0]:
        means = means[1:]
    return sum(means) / len(means)


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("threshold", [0.2, 0.5, 0.85])
def test_margin_is_that_of_a_plain_loop(count: int, threshold: float):
    maps = np.random.default_rng(count).random((count, 7, 9))
    assert margin_quality(maps, threshold) == pytest.approx(looped(maps, threshold), abs=1e-12)


def test_margin_of_clear_and_of_empty_maps():
    clear = np.zeros((2, 4, 4))
    clear[0, :2, :2] = clear[1, 2:, 2:] = 1
    assert margin_quality(clear, 0.5) == 1
    assert margin_quality(np.zeros((0, 4, 4)), 0.5) == 0
    assert margin_quality(np.full((1, 4, 4), 0.5), 0.5) == 0  # all of it background by a hair, and the class nowhere
    assert margin_quality(np.ones((1, 4, 4)), 0.5) == 1  # no pixel of background
    small = np.zeros((1, 10, 10))
    small[0, 0, 0] = 0.6  # one doubtful pixel counts as much as 99 clear ones
    assert margin_quality(small, 0.5) == pytest.approx((1 + 0.2) / 2)
    with pytest.raises(ArgumentError, match="threshold"):
        margin_quality(small, 1.5)


def test_ties_are_those_of_a_plain_loop():
    maps = np.random.default_rng(3).random((3, 12, 12))
    names, pairs, above, tied = [4, 6, 9], {}, 0, 0
    for y in range(12):
        for x in range(12):
            order = sorted(range(3), key=lambda place: maps[place, y, x])
            second, first = order[-2], order[-1]
            if maps[first, y, x] <= 0.3:
                continue
            above += 1
            if maps[first, y, x] - maps[second, y, x] < 0.05:
                tied += 1
                pair = tuple(sorted((names[first], names[second])))
                pairs[pair] = pairs.get(pair, 0) + 1
    share, pair = tied_classes(maps, names, 0.3)
    assert share == pytest.approx(tied / above)
    assert pairs[pair] == max(pairs.values())
    assert tied_classes(maps[:1], [4], 0.3) == (0.0, None)
    assert tied_classes(maps, names, 1.0) == (0.0, None)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tags": ["dog"], "shares": {}}, "dog is never drawn"),
        ({"tags": ["dog"], "shares": {"dog": 0.001}}, "hardly drawn"),
        ({"tags": ["dog"], "shares": {"dog": 0.99}}, "nearly the whole photograph (99 %)"),
        ({"tags": [], "shares": {}}, "no class is drawn"),
        ({"tags": ["dog"], "shares": {"dog": 0.3}, "undecided": 0.6}, "60 % is undecided"),
        ({"tags": ["dog"], "shares": {"dog": 0.3}, "ties": (0.5, "dog", "cat")}, "dog and cat are tied on 50 %"),
        ({"tags": ["dog"], "shares": {"dog": 0.3}, "quality": 0.1}, "quality 0.10"),
        ({"tags": ["dog"], "shares": {"dog": 0.3}, "probabilities": {"dog": 0.2}}, "doubts dog (0.20)"),
    ],
)
def test_each_reason_alone(arguments: dict, words: str):
    (reason,) = reasons_to_look(**arguments)
    assert words in reason


def test_nothing_to_say_of_a_good_mask():
    assert (
        reasons_to_look(["dog"], {"dog": 0.3}, quality=0.8, ties=(0.1, "dog", "cat"), probabilities={"dog": 0.9}) == []
    )
