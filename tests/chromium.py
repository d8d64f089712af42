"""The Chromium of the machine, without a network, for tests of pages."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_OPTIONS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)


def find_chromium() -> str:
    """Path of the browser; skips the test where there is none."""
    pytest.importorskip("playwright", reason="playwright, of the extra test, is not installed")
    names = ("chromium", "chromium-browser", "google-chrome")
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, names)), None)
    if found is None:
        pytest.skip("there is no Chromium on this machine (apt-get install chromium, or CHROMIUM=PATH)")
    return found


@contextmanager
def opened(page_at: Path | str, **options: Any) -> Iterator[Any]:
    """Opens a page; fails if it logs an error or asks for anything but itself.

    Args:
        page_at: its file, which is all that it may ask for; or the address of its server, of which it may ask anything.
        **options: of the page, for playwright.
    """
    from playwright.sync_api import sync_playwright

    address = page_at if isinstance(page_at, str) else page_at.as_uri()
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=find_chromium(), args=[*_OPTIONS])
        page = browser.new_page(**{"viewport": {"width": 1200, "height": 800}, **options})
        complaints: list[str] = []
        asked: list[str] = []
        page.on("console", lambda message: complaints.extend([message.text] * (message.type == "error")))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        try:
            page.goto(address)
            yield page
            assert complaints == []
            own = [url for url in asked if not url.startswith(("data:", "blob:"))]
            if isinstance(page_at, str):
                assert [url for url in own if not url.startswith(address)] == []
            else:
                assert own == [address]
        finally:
            browser.close()
