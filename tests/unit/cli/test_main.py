"""The words of `rca` before any command: what is imported for them, the overview, and commands that do not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rca_lightning.cli import tasks
from rca_lightning.cli.main import ABOUT, COMMANDS, main
from rca_lightning.errors import ArgumentError
from rca_lightning.version import __version__

SRC = Path(__file__).resolve().parents[3] / "src"
HEAVY = ("torch", "lightning", "torchmetrics", "albumentations", "jsonargparse", "timm", "scipy")
RUN = f"""
import sys
from rca_lightning.cli.main import console
try:
    console()
except SystemExit as end:
    print("code", end.code)
print("imported", sorted(set(sys.modules) & set({HEAVY})))
"""


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--help", "usage: rca COMMAND"),
        ("--version", f"rca {__version__}"),
        ("mask photographs --out x", "rca: command='mask': did you mean masks?"),
        ("weights list", "resnet50"),
        ("weights verify none", "rca: "),
        ("masks --help", "--max-side"),
        ("masks /no/such/folder --out x", "rca: photographs='/no/such/folder': no such folder"),
        ("masks . --out x --no-such-option", "no-such-option"),
        ("convert --help", "--polygons"),
        ("convert /no/such/folder --images . --to coco --out x", "rca: classes=None: no class list"),
        ("check --help", "--annotations"),
        ("check --layout voc2012 --results x", "rca: ids=None: give --ids"),
        ("export --help", "--ckpt_path"),
        ("app --help", "--port"),
        ("calibrate --help", "--masks N"),
        ("calibrate a.npz", "rca: a.npz: "),
        ("compare --help", "--anyway"),
        ("compare a.json", "the following arguments are required: B.json"),
        ("compare a.json b.json", "rca: file='a.json': there is no such file"),
        ("export --ckpt_path x.ckpt --out x.pt", "rca: out='x.pt': give a name that ends in .onnx or .pt2"),
    ],
)
def test_words_are_answered_before_torch_and_lightning_are_imported(words: str, said: str, tmp_path: Path):
    environment = os.environ | {"PYTHONPATH": str(SRC), "RCA_CACHE": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", RUN, *words.split()],
        env=environment, cwd=tmp_path, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=True,
    )  # fmt: skip
    assert said in done.stdout
    assert done.stdout.splitlines()[-1] == "imported []"
    assert list(tmp_path.iterdir()) == []


def test_the_overview_names_every_command_and_fits_80_columns(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 79
    names = [line.split()[0] for line in lines if line.startswith("  ") and not line.startswith("  -")]
    assert names == list(ABOUT)
    assert set(names) == {*COMMANDS, *tasks.RCACLI.subcommands(), "affinity"}


@pytest.mark.parametrize("words", [[], ["nonsense"], [""]])
def test_other_words_are_one_error_that_lists_the_commands(words: list[str]):
    with pytest.raises(ArgumentError, match=r"command=.*: give one of masks, fit, .*; see rca --help"):
        main(words)
