"""Floating point operations, counted and not timed."""

from __future__ import annotations

from collections.abc import Callable

from torch.utils.flop_counter import FlopCounterMode


def count_flops(run: Callable[[], object]) -> int:
    """Operations of the matrix products and convolutions that a function runs, backward passes with them.

    A product and its sum are two. What runs inside `torch.compile` is not seen; tensors may be on the device "meta",
    where nothing is computed.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())
