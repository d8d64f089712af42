"""What importing and asking for help must not need: optional packages and a network."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import os
import subprocess
import sys
from pathlib import Path

import pytest

OPTIONAL = ("faiss", "wandb", "timm", "pydensecrf", "onnx", "onnxscript", "onnxruntime")

# Python imports it by itself at start, wherever its folder is on the path: the same blocks for every program.
BLOCKER = f"""
import importlib.machinery, socket

finder = importlib.machinery.PathFinder
find_installed = finder.find_spec


def find_spec(name, path=None, target=None):
    return None if name.split(".")[0] in {OPTIONAL!r} else find_installed(name, path, target)


def no_network(*args, **kwargs):
    raise AssertionError("blocked: network")


finder.find_spec = find_spec
socket.socket.connect = socket.socket.connect_ex = socket.socket.bind = no_network
socket.create_connection = socket.getaddrinfo = no_network
"""


def run(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    (folder / "sitecustomize.py").write_text(BLOCKER)
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("import faiss", "No module named 'faiss'"),
        ("import socket; socket.create_connection(('127.0.0.1', 9))", "blocked: network"),
        ("import socket; socket.socket().connect(('127.0.0.1', 9))", "blocked: network"),
    ],
)
def test_the_blocker_blocks(tmp_path: Path, code: str, error: str):
    done = run(tmp_path, "-c", code)
    assert done.returncode != 0
    assert error in done.stderr


def test_what_needs_no_extra_and_no_network(tmp_path: Path):
    """In one process, for an import of lightning takes seconds: import, clustering and help."""
    code = """
import sys, lightning, runpy, torch
before = set(sys.modules)
import rca_lightning.data.datamodule
new = {name.split(".")[0] for name in set(sys.modules) - before}
print(sorted(new & {"cv2", "albumentations", "pycocotools", "scipy", "sklearn"}))

import rca_lightning
from rca_lightning.errors import MissingExtraError
assert all(hasattr(rca_lightning, name) for name in rca_lightning.__all__)
print(rca_lightning.kmeans(torch.eye(4), 2, backend="auto").backend)
try:
    rca_lightning.kmeans(torch.eye(4), 2, backend="faiss")
except MissingExtraError as error:
    print(error)
sys.argv = ["rca", "fit", "--help"]
runpy.run_module("rca_lightning", run_name="__main__")
"""
    done = run(tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    heavy, backend, refusal, *text = done.stdout.splitlines()
    assert heavy == "[]", "importing the data made the start slower"
    assert backend == "torch-cpu"
    assert "pip install 'rca-lightning[cpu]'" in refusal
    for option in ("--model.backbone", "--data.dataset", "--trainer.max_epochs", "--ckpt_path"):
        assert option in "\n".join(text)
    assert "faiss" not in done.stderr


def test_console_script_is_installed():
    (script,) = [s for s in importlib.metadata.entry_points(group="console_scripts") if s.name == "rca"]
    from rca_lightning.cli.main import console

    assert script.load() is console


def test_types_are_packaged(tmp_path: Path):
    assert importlib.resources.files("rca_lightning").joinpath("py.typed").is_file()
    # The folder of an editable installation has every file; what counts is what a built package takes along.
    from setuptools.config.setupcfg import read_configuration

    options = read_configuration(str(Path(__file__).resolve().parents[2] / "setup.cfg"))["options"]
    assert "py.typed" in options["package_data"]["rca_lightning"]
