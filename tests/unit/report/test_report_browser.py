"""The page in Chromium: opens without complaints, sliders draw, filters hide, keys move."""

from __future__ import annotations

import functools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_classes import CLASSES
from tests.chromium import find_chromium, opened

from rca_lightning.report import page
from rca_lightning.report.entries import Measured, ReportEntry, measure, thumbnail
from rca_lightning.report.page import write_report

READY = "html[data-ready]"
DRAWN = "#photos li:nth-child({}) .frame[data-ready] canvas.mask"
PIXELS = """canvas => {
    const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
    let drawn = 0;
    for (let at = 3; at < data.length; at += 4) drawn += data[at] > 0;
    return drawn / (canvas.width * canvas.height);
}"""


@pytest.fixture
def report(tmp_path: Path, entries) -> Path:
    find_chromium()
    run = {"settings": {"background_threshold": 0.4}, "curves": {"loss": [[0, 1], [1, 0.5]]}}
    return write_report(tmp_path, entries(150), run=run, classes=CLASSES)


def drawn_share(page, number: int = 1) -> float:
    return page.locator(DRAWN.format(number)).evaluate(PIXELS)


def test_threshold_redraws_the_masks(report: Path):
    with opened(report) as page:
        page.wait_for_selector(DRAWN.format(1))
        written = drawn_share(page)
        shares = []
        for hundredths in (20, 40, 80, 100):
            page.locator("#threshold").fill(str(hundredths))
            page.wait_for_function("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
            shares.append(drawn_share(page))
        assert shares == sorted(shares, reverse=True)
        assert shares[0] > shares[2] > shares[3] == 0
        assert shares[1] == pytest.approx(written, abs=0.02)  # the masks were written at 0.4
        assert page.locator("output").first.inner_text() == "1.00"
        page.get_by_role("button", name="masks as written").first.click()
        page.wait_for_function("() => new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
        assert drawn_share(page) == written


def test_view_slider_fades_from_photograph_over_map_to_mask(report: Path):
    with opened(report) as page:
        page.wait_for_selector(DRAWN.format(1))
        opacity = "name => +getComputedStyle(document.querySelector('#photos canvas.' + name)).opacity"
        seen = []
        for value in ("0", "1", "1.5", "2"):
            page.locator("#view").fill(value)
            seen.append((page.evaluate(opacity, "map"), page.evaluate(opacity, "mask")))
        assert seen == [(0, 0), (1, 0), (0.5, 0.5), (0, 1)]


def test_filters_hide_the_others(report: Path):
    with opened(report) as page:
        page.wait_for_selector(READY)
        page.get_by_label("dog 50").check()
        labels = page.locator("#photos .tile").evaluate_all("tiles => tiles.map(tile => tile.ariaLabel)")
        assert len(labels) == 50
        assert all("tagged dog" in label for label in labels)
        assert page.locator("#count").inner_text() == "50 of 150 photographs"
        page.get_by_label("cat 50").check()
        assert page.locator("#count").inner_text() == "100 of 150 photographs"
        page.locator("#search").fill("00007")
        assert page.locator("#photos .tile").count() == 1
        page.locator("#odd").check()
        assert page.locator("#photos .tile").count() == 0
        assert page.get_by_text("No photograph fits").is_visible()


def test_keys_move_through_the_gallery_and_open_a_photograph(report: Path):
    focused = "[...document.querySelectorAll('#photos li')].indexOf(document.activeElement.closest('li'))"
    with opened(report) as page:
        page.wait_for_selector(READY)
        columns = len(page.evaluate("getComputedStyle(photos).gridTemplateColumns").split())
        page.locator("#photos .tile").first.focus()
        for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("ArrowUp", 0)):
            page.keyboard.press(key)
            assert page.evaluate(focused) == place
        page.keyboard.press("End")
        assert page.evaluate(focused) == 149
        assert page.locator("#photos .tile[tabindex='0']").count() == 1
        page.keyboard.press("Home")
        page.keyboard.press("Enter")
        page.wait_for_selector("#d-frame[data-ready]")
        first = page.locator("#d-name").inner_text()
        page.keyboard.press("ArrowRight")
        assert page.locator("#d-name").inner_text() != first
        page.keyboard.press("Escape")
        page.wait_for_function(f"() => {focused} === 1")  # the photograph that was shown last
        assert not page.locator("#detail").is_visible()
        assert page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"


def test_what_is_far_away_is_not_decoded(report: Path):
    with opened(report) as page:
        page.wait_for_selector(DRAWN.format(1))
        assert page.locator("#photos .tile").count() == 60
        page.locator("#more").click()
        page.wait_for_function("() => document.querySelectorAll('#photos .tile').length === 120")
        page.evaluate("scrollTo(0, 0)")
        page.wait_for_function("() => !document.querySelector('#photos li:nth-child(120) canvas')")


def test_screen_readers_have_names_for_everything(report: Path):
    with opened(report) as page:
        page.wait_for_selector(DRAWN.format(1))
        unnamed = page.evaluate(
            """() => [...document.querySelectorAll("button, input, select")].filter(element =>
                !element.ariaLabel && !element.labels?.length && !element.textContent.trim() && element.id !== "more"
            ).map(element => element.outerHTML)"""
        )
        assert unnamed == []
        assert page.locator("img:not([alt])").count() == 0
        assert page.locator("#photos img").first.get_attribute("alt").startswith("Photograph photo_")
        assert page.get_by_role("main").count() == page.get_by_role("navigation").count() == 1
        assert page.locator("svg[role=img]:not([aria-label])").count() == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_themes_have_enough_contrast(report: Path, scheme: str):
    channels = "(name) => getComputedStyle(document.body)[name].match(/[\\d.]+/g).slice(0, 3).map(Number)"
    with opened(report, color_scheme=scheme) as page:
        page.wait_for_selector(READY)

        def luminance(name: str) -> float:
            parts = [value / 255 for value in page.evaluate(channels, name)]
            linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
            return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

        ink, paper = luminance("color"), luminance("backgroundColor")
        assert (ink < paper) == (scheme == "light")
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) > 7  # WCAG AAA


def test_5000_photographs_open_within_seconds(tmp_path: Path, entries, monkeypatch: pytest.MonkeyPatch):
    find_chromium()
    # They are of six files, each of which is measured and made small once: what is tried here is the page.
    measured: dict[Path, Measured] = {}

    def measure_once(entry: ReportEntry, *rest: Any, **options: Any) -> Measured:
        known = measured.get(entry.photograph) or measured.setdefault(
            entry.photograph, measure(entry, *rest, **options)
        )
        return replace(known, entry=entry)

    monkeypatch.setattr(page, "measure", measure_once)
    monkeypatch.setattr(page, "thumbnail", functools.cache(thumbnail))
    path = write_report(tmp_path, entries(5000), run={}, classes=CLASSES)
    assert path.stat().st_size < 64 << 20
    with opened(path) as opened_page:
        start = time.monotonic()
        opened_page.wait_for_selector(DRAWN.format(1))
        assert time.monotonic() - start < 10
        start = time.monotonic()
        opened_page.locator("#photos .tile").first.focus()
        opened_page.keyboard.press("End")
        opened_page.wait_for_selector(DRAWN.format(5000))
        assert time.monotonic() - start < 20
