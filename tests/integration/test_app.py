"""`rca app` as a process of its own: opened in Chromium, and ended by Ctrl-C."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rca_lightning
from rca_lightning import RCAModule
from tests.chromium import find_chromium, opened
from tests.integration.children import finish, send, start, wait_for
from tests.prediction_runs import with_prototypes
from tests.quiet_trainer import quiet_trainer

pytest.importorskip("gradio")

ROOT = Path(__file__).resolve().parents[2]
NAMES = ["circle", "square", "ring"]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    options = {"num_prototypes": 2, "background_prototypes": 2, "backbone_mode": "trained"}
    module = with_prototypes(RCAModule(3, NAMES, backbone="resnet14", weights="none", **options))
    path = tmp_path_factory.mktemp("checkpoint") / "rca.ckpt"
    trainer = quiet_trainer(path.parent)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


@pytest.fixture(scope="module")
def photograph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photographs") / "beach.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)).resize((98, 64)).save(path)
    return path


@contextmanager
def started(checkpoint: Path, folder: Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """The process and the address of its page; its temporary files lie in the folder."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]),
        "TMPDIR": str(folder),
        "OMP_NUM_THREADS": "1",
    }
    # What a shell started in the background ignores Ctrl-C, and so do its children.
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from rca_lightning.cli.main import console; console()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, "app", "--ckpt_path", checkpoint, "--device", "cpu"],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        assert line.startswith("the page: http://127.0.0.1:"), line + process.communicate(timeout=20)[1]
        yield process, line.split()[2]
    finally:
        process.kill()
        process.communicate()


def interrupt(process: subprocess.Popen, folder: Path) -> None:
    """Ends the process as Ctrl-C does: soon, quietly, and with nothing left behind."""
    assert list(folder.glob("rca-app-*"))
    began = time.monotonic()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "Traceback" not in said
    assert "Error" not in said
    assert time.monotonic() - began < 20
    assert not list(folder.glob("rca-app-*"))


def test_page_in_a_browser_until_ctrl_c(checkpoint: Path, photograph: Path, tmp_path: Path):
    find_chromium()
    folder = tmp_path / "temporary"
    folder.mkdir()
    model = rca_lightning.load(checkpoint, device="cpu")
    with started(checkpoint, folder) as (process, address), opened(address, accept_downloads=True) as page:
        page.set_default_timeout(60_000)
        page.wait_for_function("document.title == 'Masks from tags'")
        page.get_by_label("circle").check()
        page.get_by_label("ring").check()
        assert page.locator("#maps").count() == 0  # nothing to see yet
        page.locator("#photograph input[type=file]").set_input_files(photograph)
        page.wait_for_selector("#mask img")
        page.wait_for_selector("#drawn:has-text('by the tags you ticked')")
        captions = page.locator("#maps .caption-label").all_inner_texts()
        assert captions == ["circle", "ring"]
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")

        before = page.locator("#mask img").get_attribute("src")
        page.locator("#threshold input[type=range]").fill("1")
        page.wait_for_selector("#drawn:has-text('lower the threshold')")
        page.wait_for_function("src => document.querySelector('#mask img').src != src", arg=before)
        page.locator("#threshold input[type=range]").fill("0.4")
        page.wait_for_selector("#drawn:has(i)")
        with page.expect_download() as download:
            page.get_by_text("Save mask (PNG)").click()
        assert download.value.suggested_filename == "beach.png"
        download.value.save_as(tmp_path / "beach.png")
        expected = model.predict(photograph, ["circle", "ring"], threshold=0.4)
        assert np.array_equal(np.asarray(Image.open(tmp_path / "beach.png")), expected.mask)

        first = page.locator("#prototype input").input_value()
        row = page.locator("#prototypes [role=gridcell][data-row='2']")
        name, number = row.nth(0).inner_text(), row.nth(1).inner_text()
        assert first != f"{name} {number}"
        before = page.locator("#answered img").get_attribute("src")
        row.nth(0).click()
        page.wait_for_function("src => document.querySelector('#answered img').src != src", arg=before)
        assert page.locator("#prototype input").input_value() == f"{name} {number}"

        page.get_by_label("Clear").first.click()
        page.wait_for_selector("#drawn:has-text('The mask comes here')")
        assert page.locator("#maps").count() == 0
        interrupt(process, folder)  # while the page is open
        page.goto("about:blank")  # it has noticed that its server is gone


def look_for_tmpdir() -> None:
    """What was forked knows another folder already."""
    tempfile.tempdir = None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ended_by_a_signal(number: signal.Signals, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    log = tmp_path / "child" / "log.txt"
    process = start(["app", "--ckpt_path", str(checkpoint), "--device", "cpu"], log.parent, look_for_tmpdir)
    wait_for(lambda: log.is_file() and "the page: " in log.read_text(), process)
    assert list(tmp_path.glob("rca-app-*"))
    send(process, number)
    assert finish(process, 30) == 0
    assert "Traceback" not in log.read_text()
    assert not list(tmp_path.glob("rca-app-*"))
