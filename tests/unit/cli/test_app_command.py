"""The command `rca app`: its words, and what ends in one line before a page is served."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
import torch
from tests.prediction_runs import with_prototypes
from tests.quiet_trainer import quiet_trainer

from rca_lightning import AffinityModule, RCAModule
from rca_lightning.cli.main import main
from rca_lightning.errors import ArgumentError, MissingExtraError, RCAError, WeightsError


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("checkpoints")
    torch.manual_seed(0)
    options = {"backbone": "resnet14", "weights": "none"}
    modules = {
        "localize": with_prototypes(RCAModule(2, ["a", "b"], num_prototypes=1, backbone_mode="trained", **options)),
        "affinity": AffinityModule(2, ["a", "b"], **options),
    }
    for name, module in modules.items():
        trainer = quiet_trainer(folder)
        trainer.strategy.connect(module)
        trainer.save_checkpoint(folder / f"{name}.ckpt")
    (folder / "broken.ckpt").write_bytes((folder / "localize.ckpt").read_bytes()[:2000])
    return {file.stem: file for file in folder.glob("*.ckpt")}


def test_without_the_extra_it_says_what_to_install(checkpoints, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(MissingExtraError, match=r"'gradio' is needed for rca app.*pip install 'rca-lightning\[app\]'"):
        main(["app", "--ckpt_path", str(checkpoints["localize"])])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "--ckpt_path"),
        (["--ckpt_path", "x", "--port", "0"], "0: give 1 to 65535"),
        (["--ckpt_path", "x", "--port", "65536"], "65536: give 1 to 65535"),
        (["--ckpt_path", "x", "--port", "many"], "many"),
        (["--ckpt_path", "x", "--share"], "--share"),
    ],
)
def test_words_that_are_not_understood(words, message, capsys):
    with pytest.raises(SystemExit) as stop:
        main(["app", *words])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "error", "message"),
    [
        ("missing", ArgumentError, r"path='.*missing\.ckpt'"),
        ("broken", WeightsError, r"broken\.ckpt"),
        ("affinity", WeightsError, "of the task 'affinity', which draws no masks"),
    ],
)
def test_checkpoints_that_draw_no_masks(checkpoints, name, error, message):
    pytest.importorskip("gradio")
    path = checkpoints.get(name, checkpoints["localize"].with_name(f"{name}.ckpt"))
    with pytest.raises(error, match=message) as caught:
        main(["app", "--ckpt_path", str(path)])
    assert isinstance(caught.value, RCAError)
    assert "\n" not in str(caught.value)


def test_ports_that_are_taken(checkpoints):
    pytest.importorskip("gradio")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ArgumentError, match=f"port={port}: it is taken"):
            main(["app", "--ckpt_path", str(checkpoints["localize"]), "--port", str(port), "--device", "cpu"])


def test_devices_that_are_not_there(checkpoints):
    pytest.importorskip("gradio")
    with pytest.raises(ArgumentError, match="device='abacus'"):
        main(["app", "--ckpt_path", str(checkpoints["localize"]), "--device", "abacus"])
