"""What a finished training has come to, and whether two have come to the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

# Not "epoch", which nothing is restored from: it is one more in a checkpoint written once more when all was done.
_STATE = ("state_dict", "optimizer_states", "lr_schedulers", "global_step")


def ending(folder: Path) -> dict[str, Any]:
    """Weights, optimiser, schedule, memory and metrics of a run of `children.start`, from its latest checkpoint."""
    latest = max(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    checkpoint = torch.load(latest, weights_only=True)
    kept = {name: checkpoint[name] for name in _STATE}
    callbacks = checkpoint["callbacks"]
    kept["callbacks"] = {name: callbacks[name] for name in callbacks if not name.startswith("ModelCheckpoint")}
    return {**kept, "metrics": torch.load(folder / "metrics.pt", weights_only=True)}


def differences(one: Any, other: Any, place: str = "") -> list[str]:
    """Places at which two nested values differ; tensors must be equal bit for bit."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        return [found for key in keys for found in differences(one.get(key), other.get(key), f"{place}/{key}")]
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)) and len(one) == len(other):
        pairs = enumerate(zip(one, other, strict=True))
        return [found for index, (a, b) in pairs for found in differences(a, b, f"{place}/{index}")]
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and torch.equal(one.nan_to_num(), other.nan_to_num())
        return [] if same else [place]
    return [] if one == other or (one != one and other != other) else [place]
