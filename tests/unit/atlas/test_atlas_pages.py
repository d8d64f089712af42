"""The picture of a class and the index."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
from tests.html_contents import Contents

from rca_lightning.atlas.page import TILE, IndexEntry, Row, Tile, draw_page, index_page, page_name


def tile(value: int, left: str = "photo", right: str = "0.50") -> Tile:
    return Tile(np.full((TILE, TILE, 3), value, dtype=np.uint8), left, right)


def test_page_is_a_grid():
    rows = [Row(f"prototype {r}", ("2 regions",), 0.5, tuple(tile(20 * r + c) for c in range(1 + r))) for r in range(4)]
    page = draw_page("cat", "some", rows, columns=4)
    wide = draw_page("cat", "some", rows[:1], columns=4)
    assert page.shape[1] == wide.shape[1]
    places = {}
    for r, row in enumerate(rows):
        for c in range(len(row.tiles)):
            (ys, xs) = (
                np.nonzero(np.all(page == 20 * r + c, axis=2)) if r or c else np.nonzero(np.all(page == 0, axis=2))
            )
            places[r, c] = (int(ys.min()), int(xs.min()))
            assert (np.ptp(ys) + 1, np.ptp(xs) + 1) == (TILE, TILE)
    assert len({y for y, _ in places.values()}) == 4
    assert len({x for _, x in places.values()}) == 4
    assert all(places[r, c] == (places[r, 0][0], places[3, c][1]) for r, c in places)


def test_many_prototypes_stand_in_two_columns():
    rows = [Row("prototype", (), 1.0, (tile(7),))] * 21
    many, few = draw_page("cat", "", rows, columns=1), draw_page("cat", "", rows[:20], columns=1)
    assert many.shape[0] < few.shape[0]
    assert many.shape[1] > 1.8 * few.shape[1]
    assert np.all(many == 7, axis=2).sum() == 21 * TILE * TILE


def test_long_names_stay_in_their_tile():
    short = draw_page("cat", "", [Row("p", (), 1.0, (tile(7, "x"), tile(7)))], columns=2)
    long = draw_page("cat " * 99, "y" * 999, [Row("p", (), 1.0, (tile(7, "COCO_train2014_" * 9), tile(7)))], columns=2)
    assert short.shape == long.shape
    ink = np.any(long != 255, axis=2)
    last_column = np.nonzero(np.all(long == 7, axis=2))[1].max()
    assert not ink[:, last_column + 1 :].any()
    # As much as there is room for: under the first tile all but the gap before the cosine is written upon.
    bottom, right = np.argwhere(np.all(long == 7, axis=2)).max(axis=0)
    left = right - 2 * TILE - 9
    written = np.nonzero(ink[bottom + 4 : bottom + 18, left : left + TILE].any(axis=0))[0]
    assert np.diff(written).max() < 20
    assert (written[0] < 4, written[-1] > TILE - 4) == (True, True)


def test_unreadable_photograph_is_said_so():
    blank = draw_page("cat", "", [Row("p", (), 1.0, ())], columns=1)
    told = draw_page("cat", "", [Row("p", (), 1.0, (Tile(None, "photo", "0.50"),))], columns=1)
    assert blank.shape == told.shape
    assert (blank != told).any()


def test_index_escapes_names_and_shows_what_was_measured():
    name = '<script>alert("x")</script>'
    entries = [
        IndexEntry(name, "001_script.png", 12, 5, 3, 0.75, 0.125),
        IndexEntry("empty", None, 0, 0, 0, math.nan, math.nan),
    ]
    page = Contents(
        index_page(
            entries, note="a <b> & c", diagnostics={name: {"seed_IoU": 0.5, "dead<": 2, "age": None, "regions": 99}}
        )
    )
    assert not {"script", "b"} & set(page.tags)
    assert page.links == ["001_script.png"]
    assert "a <b> & c" in page.words
    start = page.words.index(name)
    assert page.words[start : start + 9] == [name, "12", "5", "3", "0.75", "0.12", "0.50", "2", "-"]
    assert page.words[start + 9 :] == ["empty", "0", "0", "0", "-", "-", "-", "-", "-"]
    assert {"seed IoU", "dead<", "age"} <= set(page.words)


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/b", "C:\\x", "..", "", "犬", "x" * 300, "CON"])
def test_page_names_stay_in_the_folder(name):
    page = page_name(name, 7)
    assert re.fullmatch(r"007(_[A-Za-z0-9_]{1,40})?\.png", page)
