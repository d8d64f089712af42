"""How fast a device multiplies bf16 matrices: what its data sheet says, and what it does."""

from __future__ import annotations

import re

import torch

from measure.timing import in_turns

# 10^12 operations a second, dense, bf16 with sums in float32. NVIDIA's data sheets of H200, H100, L40S and L4 print
# these numbers twice as large ("with sparsity"); that of A100 prints 312 | 624. RTX 4090: whitepaper "NVIDIA Ada GPU
# Architecture", appendix A. V100 and T4 have no bf16 units.
_DATA_SHEETS = (
    (r"\bH[12]00 NVL\b", 835.5),
    (r"\bH100 PCIe\b", 756.5),
    (r"\bH[12]00\b", 989.4),
    (r"\bA100\b", 312.0),
    (r"\bL40S\b", 362.0),
    (r"\bL4\b", 121.0),
    (r"\bRTX 4090$", 165.2),
)
_PRODUCTS = 10  # a round: one alone would be as short as its launch


def on_data_sheet(device_name: str) -> float | None:
    """Peak in TFLOPS of a device as `torch.cuda.get_device_name` calls it; `None` where unknown."""
    if "MIG" in device_name:
        return None
    return next((peak for pattern, peak in _DATA_SHEETS if re.search(pattern, device_name)), None)


def measured_peak(side: int = 8192, *, rounds: int = 5) -> float:
    """TFLOPS of products of two square bf16 matrices, in the fastest of some rounds.

    Args:
        side: rows and columns.
        rounds: how often it is timed.
    """
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = (torch.randn(side, side, device=device).bfloat16() for _ in range(2))

    def multiply() -> None:
        for _ in range(_PRODUCTS):
            one @ other

    times = in_turns({"product": multiply}, rounds=rounds)["product"]
    return _PRODUCTS * 2 * side**3 / min(times.wall) / 1e12
