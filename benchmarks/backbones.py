"""What one photograph costs each backbone: python benchmarks/backbones.py [--quick] [--rounds N] [--out FOLDER].

Needs timm and Linux. Random weights: they change neither time nor memory. Each backbone runs in a process of its own,
on one thread.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from measure.result import Result

from rca_lightning.backbones.build import build_backbone

SIZE = (375, 500)  # of most photographs of VOC
BACKBONES = {  # and the output stride to ask for
    "resnet50": 16,
    "timm:efficientnet_b0": 16,
    "timm:convnext_tiny": 16,
    "timm:swin_tiny_patch4_window7_224": 32,
    "timm:deit_small_patch16_224": 16,
    "timm:vit_small_patch14_dinov2": 16,
    "timm:vit_small_patch14_reg4_dinov2": 16,
    "timm:vit_small_patch16_dinov3": 16,
    "timm:vit_base_patch16_224": 16,
    "timm:vit_base_patch16_clip_quickgelu_224": 16,
    "timm:vit_base_patch14_dinov2": 16,
}


def main() -> None:
    """Measure every backbone, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one round of the first two: whether it runs")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results", help="folder of the JSON file")
    parser.add_argument("--rounds", type=int, default=5, help="how often each is timed")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print(json.dumps(measure(given.one, BACKBONES[given.one], given.rounds)))
        return
    names = list(BACKBONES)[: 2 if given.quick else None]
    rows = [in_a_process(name, 1 if given.quick else given.rounds) for name in names]
    height, width = SIZE
    result = Result(
        "backbones", f"a photograph of {width} x {height} pixels, float32, one thread, random weights", rows
    )
    result.show()
    print(f"written to {result.write(given.out)}")


def in_a_process(name: str, rounds: int) -> dict[str, Any]:
    """The row of a backbone, measured where no other has taken memory."""
    command = [sys.executable, __file__, "--one", name, "--rounds", str(rounds)]
    run = subprocess.run(command, check=True, capture_output=True, text=True)
    row: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    return row


@torch.no_grad()
def measure(name: str, output_stride: int, rounds: int) -> dict[str, Any]:
    """Processor seconds of the last map, the median of some rounds, and the memory that it takes."""
    torch.manual_seed(0)
    backbone = build_backbone(name, output_stride=output_stride, weights="none").eval()
    image = torch.randn(1, 3, *SIZE)
    _forget_peak()
    [maps] = backbone.last_maps(image, 1)
    memory = _peak()
    row = {
        "backbone": name,
        "million parameters": round(sum(value.numel() for value in backbone.parameters()) / 1e6, 1),
        "cells": f"{maps.shape[2]} x {maps.shape[3]}",
        "channels": maps.shape[1],
        "seconds": _median(lambda: backbone.last_maps(image, 1), rounds),
        "mib": round(memory),
    }
    try:
        backbone.check_affinity()
    except ValueError:
        return {**row, "seconds with attention": None}
    return {**row, "seconds with attention": _median(lambda: backbone.maps_and_relation(image, 1, "attention"), rounds)}


def _median(work: Any, rounds: int) -> float:
    seconds = []
    for _ in range(rounds):
        started = time.process_time()
        work()
        seconds.append(time.process_time() - started)
    return round(statistics.median(seconds), 2)


def _forget_peak() -> None:
    """Let the peak of this process begin anew, for building a backbone takes more than running it."""
    Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """MiB that the process has held at once since then, torch and the weights included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10


if __name__ == "__main__":
    main()
