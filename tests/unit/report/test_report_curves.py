"""Curves: where points come to lie, ticks, and their tables."""

from __future__ import annotations

import itertools
import re

import pytest

from rca_lightning.report.curves import curve_figure, curves, histogram_figure, nice_ticks, thin


@pytest.mark.parametrize(
    ("low", "high"), [(0.13, 0.97), (0, 1), (-3, 17), (1e-7, 3e-7), (5, 5), (0, 0), (120, 99_000), (-0.2, -0.1)]
)
def test_ticks_are_even_and_enclose_the_values(low: float, high: float):
    ticks = nice_ticks(low, high, 4)
    steps = [b - a for a, b in itertools.pairwise(ticks)]
    assert ticks[0] <= low
    assert ticks[-1] >= high
    assert 2 <= len(ticks) <= 7
    assert max(steps) == pytest.approx(min(steps))


def test_path_goes_through_the_points():
    figure = curve_figure("a<b", [(0, 0.0), (10, 1.0), (5, 0.5)])
    (path,) = re.findall(r'class="line" d="([^"]*)"', figure)
    places = [tuple(map(float, place.split())) for place in re.split(r"[ML]", path)[1:]]
    (x0, y0), (x1, y1), (x2, y2) = places
    assert x0 < x1 < x2
    assert y0 > y1 > y2  # up on the page is less
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y1 == pytest.approx((y0 + y2) / 2, abs=0.1)
    assert "a&lt;b" in figure
    assert "a<b" not in figure
    assert re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td>", figure) == [("0", "0"), ("5", "0.5"), ("10", "1")]


def test_curves_without_a_number_are_left_out():
    assert curves({"a": [], "b": [(0, float("nan"))]}) == ""
    assert curve_figure("one", [(3, 0.25)]).count("<circle") == 1


def test_thinned_curve_keeps_its_ends():
    points = [(float(x), float(x)) for x in range(1000)]
    kept = thin(points, 60)
    assert len(kept) == 60
    assert (kept[0], kept[-1]) == (points[0], points[-1])


def test_bars_are_as_high_as_their_counts():
    figure = histogram_figure("q", [1, 4, 0], ends=("low", "high"))
    assert [float(h) for h in re.findall(r' height="([\d.]+)"><title>', figure)] == [23.0, 92.0, 0.0]
