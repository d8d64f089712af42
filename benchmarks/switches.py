"""Target 8: what TF32, bfloat16, channels_last and torch.compile give a training step: a table of what to turn on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator

import torch
from measure.result import Result
from measure.timing import as_rows, in_turns
from training_step import SIZES, TINY, Size, make_step

_WAYS: dict[str, dict[str, bool]] = {
    "float32": {},
    "tf32": {"tf32": True},
    "tf32, channels_last": {"tf32": True, "channels_last": True},
    "float32, channels_last": {"channels_last": True},
    "float32, compile": {"compiled": True},
    "bfloat16": {"half": True, "tf32": True},
    "bfloat16, channels_last": {"half": True, "channels_last": True, "tf32": True},
    "bfloat16, channels_last, compile": {"half": True, "channels_last": True, "compiled": True, "tf32": True},
}


def run(*, quick: bool = False, rounds: int = 3) -> Result:
    """Steps of RCA with VOC's sizes, each way in turns.

    On a processor without bfloat16 units those ways are left out: emulated, a step takes minutes. TF32 is what
    `rca` switches on for what bfloat16 leaves in float32; other devices than CUDA ones do not have it.
    """
    size = TINY["tiny"] if quick else SIZES["voc"]
    if not torch.cuda.is_available() and not quick:
        size = dataclasses.replace(size, batch=4)  # the ratios hardly depend on it, the minutes do
    ways = {name: make_way(size, **switches) for name, switches in _WAYS.items() if _fit_for(switches)}
    rows = as_rows(in_turns(ways, rounds=rounds, warmup=2), "float32")
    result = Result("switches", f"training step of RCA, {size.batch} x {size.side} px, {size.backbone}", rows)
    result.notes["left out"] = [name for name in _WAYS if name not in ways]
    return result


def _fit_for(switches: dict[str, bool]) -> bool:
    if torch.cuda.is_available():
        return True
    if "half" in switches:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return "tf32" not in switches


def make_way(
    size: Size,
    *,
    rca: bool = True,
    half: bool = False,
    tf32: bool = False,
    channels_last: bool = False,
    compiled: bool = False,
    fused: bool = True,
) -> Callable[[], None]:
    """A training step of RCA or of a plain CAM with these switches on and the others off."""
    step = make_step(size, rca=rca, channels_last=channels_last, compiled=compiled, fused=fused)
    device = "cuda" if torch.cuda.is_available() else "cpu"

    def run_step() -> None:
        with _tf32(tf32), torch.autocast(device, torch.bfloat16) if half else contextlib.nullcontext():
            step()

    return run_step


@contextlib.contextmanager
def _tf32(on: bool) -> Iterator[None]:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on  # convolutions; on unless told otherwise
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
