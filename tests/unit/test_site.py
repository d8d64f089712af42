"""The documentation site builds without a warning; its links lead somewhere, and it needs no network to be read."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import rca_lightning
from rca_lightning.cli.main import COMMANDS
from rca_lightning.cli.tasks import RCACLI
from rca_lightning.io.listing import first_few

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("mkdocs", "material", "mkdocstrings_handlers.python")
# What a browser fetches by itself, by element; links that a reader clicks on may lead out.
FETCHED = {"img": "src", "script": "src", "iframe": "src", "source": "src", "link": "href"}


def is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


pytestmark = pytest.mark.skipif(
    not all(is_installed(module) for module in NEEDED),
    reason="builds the documentation site; pip install 'rca-lightning[docs]'",
)


class Page(HTMLParser):
    """Targets of links, what is fetched by itself, anchors, and words of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.anchors: set[str] = {"", "__skip"}
        self.words: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.anchors |= {str(given[name]) for name in ("id", "name") if given.get(name)}
        if tag == "a" and given.get("href"):
            self.links.append(str(given["href"]))
        if given.get(FETCHED.get(tag, "")):
            self.fetched.append(str(given[FETCHED[tag]]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    # Not quietly: warnings that are not shown are not counted by --strict either.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    path = os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": path}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[str, Page]:
    # The page of errors is shown at any address, so its links begin at the root of a server.
    paths = [path for path in site.rglob("*.html") if path.name != "404.html"]
    return {path.relative_to(site).as_posix(): Page(path.read_text()) for path in paths}


def test_every_page_that_was_asked_for_is_there(pages: dict[str, Page]):
    asked = "index own_photographs method prototypes reproduce backbones long_runs command_line reference questions"
    assert {f"{name}.html" for name in [*asked.split(), "CHANGELOG"]} <= set(pages)
    assert "experiments/voc2012_mini/index.html" in pages  # where numbers lead to


def test_links_and_anchors_lead_somewhere(site: Path, pages: dict[str, Page]):
    broken, count = [], 0
    for name, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                assert parts.scheme in ("https", "mailto"), f"{name}: {link}"
                continue
            count += 1
            target = Path(os.path.normpath((site / name).parent / unquote(parts.path) if parts.path else site / name))
            if target.is_dir():
                target /= "index.html"
            there = pages.get(target.relative_to(site).as_posix())
            if not target.is_file() or (there is not None and unquote(parts.fragment) not in there.anchors):
                broken.append(f"{name}: {link}")
    assert count > 1000
    assert not broken, first_few(broken)


def test_nothing_is_fetched_from_elsewhere(site: Path, pages: dict[str, Page]):
    for name, page in pages.items():
        for address in page.fetched:
            parts = urlsplit(address)
            assert not parts.scheme + parts.netloc, f"{name}: {address}"
            assert (site / Path(name).parent / unquote(parts.path)).exists(), f"{name}: {address}"
    for sheet in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", sheet.read_text()), sheet


def test_pictures_are_committed_files_with_a_text(site: Path, pages: dict[str, Page]):
    shown = [address for page in pages.values() for address in page.fetched if address.endswith((".png", ".svg"))]
    names = {Path(address).name for address in shown}
    assert {"panel.png", "method.svg", "curves.png"} <= names
    for path in site.rglob("*.md"):  # pages of the hooks are text alone
        pytest.fail(f"{path} was copied instead of made a page")


def test_command_line_has_every_command_and_option(pages: dict[str, Page]):
    page = pages["command_line.html"]
    words = {word.strip() for word in page.words}
    for name in [*RCACLI.subcommands(), "affinity", *COMMANDS]:
        assert f"rca-{name}" in page.anchors
    assert {"--model.backbone", "--memory.slots", "--features.folder", "--data.root", "--trainer.max_epochs"} <= words
    assert {"--ckpt_path", "--background_threshold", "--results", "--model.teacher_decay", "--model.radius"} <= words


def test_reference_has_every_public_name(pages: dict[str, Page]):
    anchors = {anchor.rpartition(".")[2] for anchor in pages["reference.html"].anchors}
    assert set(rca_lightning.__all__) - {"__version__"} <= anchors


def test_equations_lead_to_their_functions(pages: dict[str, Page]):
    led = {link for link in pages["method.html"].links if link.startswith("functions.html#")}
    assert "functions.html#rca_lightning.rca.aggregation.SemanticAggregation.forward" in led
    assert "functions.html#rca_lightning.rca.network.RCANetwork.class_evidence" in led
    assert len(led) >= 20


def test_changelog_is_that_of_the_repository(pages: dict[str, Page]):
    text = (ROOT / "CHANGELOG.md").read_text()
    words = " ".join("".join(pages["CHANGELOG.html"].words).split())
    for heading in re.findall(r"^## (.+)$", text, flags=re.MULTILINE):
        assert heading in words


def test_search_index_is_made(site: Path):
    assert "prototypes" in (site / "search" / "search_index.json").read_text()
