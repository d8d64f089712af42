"""Part of gpu.py: a training step of RCA over one of a plain CAM in bf16, in time, images a second and operations."""

from __future__ import annotations

import dataclasses
import functools
import gc
from collections.abc import Callable
from typing import Any

import torch
from measure.flops import count_flops
from measure.peak import measured_peak, on_data_sheet
from measure.result import Result
from measure.timing import Times, in_turns, ratio
from switches import make_way
from training_step import SIZES, TINY, Size

_IMAGES = 80  # a turn, in steps one after the other, so that waiting for the device after each turn costs little
_CASES = (("voc", 16, 256), ("coco", 16, 256), ("voc", 64, 448), ("coco", 64, 448))  # size, batch, side in px
_METHODS: dict[str, dict[str, bool]] = {
    "cam": {"rca": False},
    "rca": {"rca": True},
    "rca, equations": {"rca": True, "fused": False},  # as they stand, see RCANetwork
}


def measure_peak(found: dict[str, Any], *, quick: bool) -> None:
    """Fill in TFLOPS of bf16 products: `measured`, and `data_sheet` where the device is a known one."""
    found["measured"] = measured_peak(64 if quick else 8192)
    found["data_sheet"] = on_data_sheet(torch.cuda.get_device_name()) if torch.cuda.is_available() else None
    print(f"bf16 products: {found['measured']:.3g} TFLOPS measured, data sheet {found['data_sheet']}\n")


def measure_steps(found: dict[str, Any], *, quick: bool, peaks: dict[str, float | None], compiled: bool) -> None:
    """Fill in the rows of every case, in bf16 autocast with channels_last.

    Args:
        found: gets `rows`, as they come, and under `left out` what did not fit into memory.
        quick: one tiny case.
        peaks: see `measure_peak`; shares are of these.
        compiled: whether `torch.compile` has gone over the backbone.
    """
    what = "bf16 autocast, channels_last, torch.compile" if compiled else "bf16 autocast, channels_last"
    result = Result("steps", f"{what}; a full memory of 500 slots and 10 prototypes a class", [])
    found["title"], found["left out"] = result.title, {}
    rows = found["rows"] = result.rows = []
    try:
        for name, batch, side in [("tiny", 2, 64)] if quick else _CASES:
            size = dataclasses.replace((SIZES | TINY)[name], batch=batch, side=side)
            case = {"size": name, "images": f"{batch} x {side} px"}
            try:
                rows.extend({**case, **row} for row in _compare(size, compiled, peaks, quick=quick))
            except torch.OutOfMemoryError as error:
                found["left out"][" ".join(case.values())] = f"out of memory: {str(error).splitlines()[0]}"
            release_memory()
    finally:
        result.show()


def release_memory() -> None:
    """Give back what a finished part had on the device; modules and their callbacks hold each other."""
    gc.collect()
    torch.cuda.empty_cache()


def _compare(size: Size, compiled: bool, peaks: dict[str, float | None], *, quick: bool) -> list[dict[str, Any]]:
    operations = {name: _count(size, **how) / 1e12 for name, how in _METHODS.items()}
    several = 1 if quick else max(1, _IMAGES // size.batch)
    rounds, warmup = (2, 1) if quick else (10, 2)
    switched = {"half": True, "tf32": True, "channels_last": True, "compiled": compiled}
    ways = {name: _repeated(make_way(size, **how, **switched), several) for name, how in _METHODS.items()}
    # Compiled ones one after the other: code that was compiled for a backbone of the one would be used for the other,
    # and code for one size makes that for the next one fit any size, which is slower.
    together = [[name] for name in ways] if compiled else [list(ways)]
    times: dict[str, Times] = {}
    for names in together:
        torch.compiler.reset()
        times.update(in_turns({name: ways[name] for name in names}, rounds=rounds, warmup=warmup))
    rows = []
    for name in _METHODS:
        seconds, tera = times[name].seconds / several, operations[name]
        shares = {f"of_{kind}_peak": tera / seconds / peak if peak else None for kind, peak in peaks.items()}
        row = {"way": name, "seconds": seconds, "ratio": ratio(times[name], times["cam"])}
        rows.append({**row, "images_per_second": size.batch / seconds, "tflop": tera, **shares})
    return rows


@functools.cache
def _count(size: Size, rca: bool, fused: bool = True) -> int:
    """Operations of a step, counted on one that is not compiled."""
    found = count_flops(make_way(size, rca=rca, fused=fused, half=True, tf32=True, channels_last=True))
    release_memory()
    return found


def _repeated(step: Callable[[], None], count: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(count):
            step()

    return run
