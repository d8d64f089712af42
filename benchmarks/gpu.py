"""What RCA costs on one GPU, in one JSON: python benchmarks/gpu.py [--root VOC2012 --weights resnet50.pth]."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import clustering
import prediction
import switches
import torch
from gpu_steps import measure_peak, measure_steps, release_memory
from gpu_training import train
from measure.machine import describe_machine
from measure.parts import Parts
from measure.result import Result

HERE = Path(__file__).parent
_SECONDS = 470.0  # of all parts together
_LIMITS = {  # seconds of each; what matters most comes first, should the time of all run out
    "peak": 30.0,
    "steps": 90.0,
    "training": 250.0,
    "clustering": 60.0,
    "prediction": 50.0,
    "compiled steps": 150.0,
    "switches": 120.0,
}


def main(words: Sequence[str] | None = None) -> Path:
    """Measure every part, print its table, and write the JSON after each.

    Args:
        words: of the command line; default those of the process.

    Returns:
        The JSON.
    """
    given = _arguments(words)
    path: Path = given.out or HERE / "results" / f"gpu-{_slug(_device())}.json"
    about = {"title": "RCA on one device", "machine": describe_machine(), "quick": given.quick}
    parts = Parts(path, about, seconds=_SECONDS)
    peaks: dict[str, Any] = {}
    workers = 0 if given.quick else len(os.sched_getaffinity(0))
    work = {
        "peak": lambda found: (measure_peak(found, quick=given.quick), peaks.update(found)),
        "steps": partial(measure_steps, quick=given.quick, peaks=peaks, compiled=False),
        "compiled steps": partial(measure_steps, quick=given.quick, peaks=peaks, compiled=True),
        "clustering": partial(_clustering, quick=given.quick),
        "prediction": partial(_prediction, quick=given.quick),
        "switches": partial(_switches, quick=given.quick),
        "training": partial(
            train,
            root=given.root,
            weights=given.weights,
            stride_in=given.stride_in,
            workers=workers,
            quick=given.quick,
        ),
    }
    for name, seconds in _LIMITS.items():
        parts.run(name, work[name], seconds=seconds)
        release_memory()
    for name, error in parts.errors.items():
        print(f"{name}: FAILED: {error}")
    print(f"written to {path}")
    return path


def _clustering(found: dict[str, Any], *, quick: bool) -> None:
    for name in clustering.TINY if quick else clustering.SIZES:
        _keep(found, name, clustering.run(quick=quick, rounds=3, names=() if quick else (name,)))


def _prediction(found: dict[str, Any], *, quick: bool) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    for name, half in (("bfloat16", True), ("float32", False)):
        with torch.autocast(device, torch.bfloat16, enabled=half):
            result = prediction.run(quick=quick)
        result.title += f", {name}"
        _keep(found, name, result)


def _switches(found: dict[str, Any], *, quick: bool) -> None:
    torch.compiler.reset()
    _keep(found, "float32 to bfloat16", switches.run(quick=quick))


def _keep(found: dict[str, Any], name: str, result: Result) -> None:
    found[name] = result.content()
    result.show()
    print()


def _arguments(words: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="the JSON; default: results/gpu-DEVICE.json beside this file")
    parser.add_argument("--root", type=Path, help="VOC 2012, to train on the lists of experiments/voc2012_mini")
    parser.add_argument("--weights", type=Path, help="ImageNet ResNet-50 for --root")
    parser.add_argument(
        "--stride_in", choices=("3x3", "1x1"), default="3x3", help="1x1 for a ResNet of the original kind"
    )
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether it runs, not what it costs")
    given = parser.parse_args(words)
    if not torch.cuda.is_available() and not given.quick:
        parser.error("no CUDA device is there; --quick runs the same in tiny sizes on the processor")
    if (given.root is None) != (given.weights is None):
        parser.error("--root and --weights belong together: photographs, and a network that knows ImageNet")
    for name in ("root", "weights"):
        path = getattr(given, name)
        if path is not None and not path.exists():
            parser.error(f"--{name} {path}: is not there")
    return given


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu"


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


if __name__ == "__main__":
    main()
