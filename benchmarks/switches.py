"""Target 8: what bfloat16, channels_last and torch.compile give a training step: one table of what to turn on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable

import torch
from measure.result import Result
from measure.timing import as_rows, in_turns
from training_step import SIZES, TINY, make_step

_WAYS: dict[str, dict[str, bool]] = {
    "float32": {},
    "float32, channels_last": {"channels_last": True},
    "float32, compile": {"compiled": True},
    "bfloat16": {"half": True},
    "bfloat16, channels_last": {"half": True, "channels_last": True},
    "bfloat16, channels_last, compile": {"half": True, "channels_last": True, "compiled": True},
}


def run(*, quick: bool = False, rounds: int = 3) -> Result:
    """Steps of RCA with VOC's sizes, each way in turns.

    On a processor without bfloat16 units those ways are left out: emulated, a step takes minutes.
    """
    size = TINY["tiny"] if quick else SIZES["voc"]
    if not torch.cuda.is_available() and not quick:
        size = dataclasses.replace(size, batch=4)  # the ratios hardly depend on it, the minutes do
    ways = {name: _way(size, **switches) for name, switches in _WAYS.items() if _fit_for(switches)}
    rows = as_rows(in_turns(ways, rounds=rounds, warmup=2), "float32")
    result = Result("switches", f"training step of RCA, {size.batch} x {size.side} px, {size.backbone}", rows)
    result.notes["left out"] = [name for name in _WAYS if name not in ways]
    return result


def _fit_for(switches: dict[str, bool]) -> bool:
    if "half" not in switches:
        return True
    return torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _way(
    size: object, *, half: bool = False, channels_last: bool = False, compiled: bool = False
) -> Callable[[], None]:
    step = make_step(size, rca=True, channels_last=channels_last, compiled=compiled)  # type: ignore[arg-type]
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run_step() -> None:
        with torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            step()

    return run_step
