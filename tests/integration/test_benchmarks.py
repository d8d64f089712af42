"""Every benchmark in tiny sizes, as a user runs it; what it costs is not looked at."""

from __future__ import annotations

import json
import logging
import multiprocessing
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forecast
import pytest
import torch
import training_step
from measure.result import Result
from PIL import Image

import gpu

ROOT = Path(__file__).resolve().parents[2]
RUN = ROOT / "benchmarks" / "run.py"
NAMES = runpy.run_path(str(RUN))["NAMES"]


@pytest.fixture(autouse=True)
def traced_only(monkeypatch: pytest.MonkeyPatch):
    """`torch.compile` traces, but generates no code, which would take a compiler and half a minute."""
    compile_module = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **options: compile_module(module, backend="eager"))
    yield
    logging.disable(logging.NOTSET)
    torch.compiler.reset()


def benchmark(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["run.py", *map(str, words)])
    runpy.run_path(str(RUN), run_name="__main__")


def checked(path: Path) -> dict[str, Any]:
    """Content of a JSON that has what every one of them has."""
    content = json.loads(path.read_text())
    assert {"title", "machine", "rows", "targets", "notes"} == set(content)
    assert {"date", "processor", "cores", "threads", "python", "torch", "rca_lightning", "command"} <= set(
        content["machine"]
    )
    assert content["rows"]
    assert len({tuple(row) for row in content["rows"]}) == 1
    for row in content["rows"]:
        assert all(row[name] > 0 for name in row if name.endswith("seconds"))
    for target in content["targets"].values():
        assert set(target) == {"limit", "found", "met"}
    return content


@pytest.fixture
def cheap(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Processes that would import the library anew are forked; those that measure their memory are only noted.

    The forecast is that of a small project.
    """
    commands: list[list[str]] = []

    def stand_in(words: list[str], **how: object) -> subprocess.CompletedProcess[str]:
        commands.append(words)
        told = 'region memory: 1\n{"peak_mib": 2.0}'
        if Path(words[1]).name == "listing.py":
            told = '[{"step": "list photographs and tags", "seconds": 1.0, "mib": 2.0}]'
        return subprocess.CompletedProcess(words, 0, stdout=f"{told}\n")

    def spawn(work: Callable[..., None], args: tuple[object, ...], nprocs: int) -> None:
        torch.multiprocessing.start_processes(work, args, nprocs, start_method="fork")

    monkeypatch.setattr(subprocess, "run", stand_in)
    small = forecast.Project(1600, gpus=2, classes=2, tags=2, backbone="resnet14", side=64)
    monkeypatch.setattr(forecast, "PROJECTS", {"small": small})
    monkeypatch.setattr(torch.multiprocessing, "spawn", spawn)
    forking = multiprocessing.get_context("fork")
    monkeypatch.setattr(multiprocessing, "get_context", lambda method=None: forking)
    return commands


@pytest.mark.parametrize("name", [name for name in NAMES if name != "startup"])
@pytest.mark.usefixtures("cheap")
def test_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    benchmark(monkeypatch, name, "--quick", "--out", tmp_path)
    content = checked(tmp_path / f"{name}.json")
    assert content["targets"] or name in {"switches", "growth"}
    assert f"{name}: " in capsys.readouterr().out
    others = {path.name for path in tmp_path.iterdir()} - {f"{name}.json"}
    assert others == ({"growth.png"} if name == "growth" else set())
    if name == "growth":
        with Image.open(tmp_path / "growth.png") as picture:
            assert picture.format == "PNG"
        assert (tmp_path / "growth.png").stat().st_size < 60_000


def test_peak_memory_is_that_of_a_process_for_each_method(cheap: list[list[str]]):
    result = training_step.run(quick=True, rounds=1)
    assert [row["peaks_mib"] for row in result.rows] == [[2.0], [2.0], None]
    script = str(ROOT / "benchmarks" / "training_step.py")
    assert cheap == [[sys.executable, script, "tiny", method] for method in ("cam", "rca")]
    assert 0 <= training_step._peak("tiny", "rca") < 2**20


def test_startup_starts_a_process_for_each_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for the processes: the imports are tested elsewhere and take seconds each."""
    started = []

    def stand_in(words: list[str], **how: object) -> None:
        assert words[:2] == [sys.executable, "-c"]
        compile(words[2], "code", "exec")
        started.append(words[3:] or words[2])

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "run", stand_in)
        benchmark(patched, "startup", "--quick", "--out", tmp_path)
    assert started == ["import lightning", "import rca_lightning", ["fit", "--help"]]
    assert len(json.loads((tmp_path / "startup.json").read_text())["rows"]) == 3


def test_unknown_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit, match="2"):
        benchmark(monkeypatch, "clustering", "nonsense", "--quick", "--out", tmp_path)
    assert "no benchmark is called nonsense; give some of training_step, " in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_gpu_writes_all_its_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With stand-ins for two benchmarks that `test_runs` runs."""
    halved = []

    def predicted(*, quick: bool) -> Result:
        halved.append(quick and torch.is_autocast_enabled("cpu"))
        return Result("prediction", "both ways", [{"way": "batch"}])

    monkeypatch.setattr(gpu.prediction, "run", predicted)
    monkeypatch.setattr(gpu.switches, "run", lambda *, quick: Result("switches", "steps", [{"way": "float32"}]))
    path = tmp_path / "new" / "gpu.json"
    assert gpu.main(["--quick", "--out", str(path)]) == path
    content = json.loads(path.read_text())
    parts = content["parts"]
    assert {name: part["error"] for name, part in parts.items() if "error" in part} == {}
    assert content["quick"] is True
    assert content["machine"]["torch"] == torch.__version__
    assert parts["peak"]["measured"] > 0
    for name in ("steps", "compiled steps"):
        cam, rca, equations = parts[name]["rows"]
        assert [row["way"] for row in (cam, rca, equations)] == ["cam", "rca", "rca, equations"]
        assert cam["ratio"] == 1
        assert 0 < cam["tflop"] < rca["tflop"] <= equations["tflop"]
        assert cam["images_per_second"] == pytest.approx(2 / cam["seconds"])
    assert {row["way"] for row in parts["clustering"]["tiny"]["rows"]} >= {"torch", "auto"}
    assert {name: found["title"] for name, found in parts["prediction"].items() if name != "seconds"} == {
        "bfloat16": "both ways, bfloat16",
        "float32": "both ways, float32",
    }
    assert halved == [True, False]
    assert parts["switches"]["float32 to bfloat16"]["rows"][0]["way"] == "float32"
    trained = [(row["method"], row["split"], row["images"]) for row in parts["training"]["rows"]]
    assert trained == [("rca", "train", 8), ("rca", "val", 2)]
    assert all(0 <= row["miou"] <= 1 and row["fit_minutes"] > 0 for row in parts["training"]["rows"])


@pytest.mark.parametrize(
    ("words", "cuda", "message"),
    [
        ([], False, "no CUDA device is there; --quick runs the same in tiny sizes on the processor"),
        (["--root", "."], True, "--root and --weights belong together"),
        (["--root", ".", "--weights", "none.pth"], True, "--weights none.pth: is not there"),
    ],
)
def test_gpu_refuses(
    words: list[str],
    cuda: bool,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    with pytest.raises(SystemExit, match="2"):
        gpu.main([*words, "--out", str(tmp_path / "gpu.json")])
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
