"""Region memory and diagnostics that a checkpoint holds."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rca_lightning.errors import ArgumentError
from rca_lightning.rca.memory_bank import RegionMemory


def memory_of(checkpoint: Mapping[str, Any], path: str | Path) -> RegionMemory:
    """Builds the region memory of a checkpoint; raises `ArgumentError` with its path if there is none."""
    state = _memory_state(checkpoint)
    if "memory" not in state:
        remedy = "holds no region memory; give a checkpoint trained with contrast or aggregation on"
        raise ArgumentError("ckpt_path", str(path), remedy)
    memory = RegionMemory(*state["memory"]["embeddings"].shape)
    memory.load_state_dict(state["memory"])
    return memory


def diagnostics_of(checkpoint: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Diagnostics of each class at the last clustering, by class name; empty in a checkpoint without."""
    return dict(_memory_state(checkpoint).get("diagnostics", {}))


def _memory_state(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """State of the callback that owns the memory; the name of a subclass is unknown."""
    states = checkpoint.get("callbacks", {}).values()
    return next((state for state in states if isinstance(state, dict) and "memory" in state), {})
