"""What a checkpoint says about its memory and prototypes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from ablate.plain import plain

from rca_lightning.rca.diagnostics import between_class_cosine, within_class_cosine


def checkpoint_facts(path: Path) -> dict[str, Any]:
    """Prototypes by class and their cosines, regions in memory, and diagnostics that the callback kept.

    Args:
        path: a checkpoint of Lightning.

    Returns:
        `prototypes`: None without aggregation; `regions`: how many the memory has by class, None without memory;
        `diagnostics`: measures by class at the last clustering, None if the callback kept none.
    """
    saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    arguments = saved.get("hyper_parameters", {})
    names = arguments.get("class_names") or [str(c) for c in range(arguments.get("num_classes", 0))]
    states = saved.get("callbacks", {}).items()
    callback: dict[str, Any] = next((state for key, state in states if key.startswith("RegionMemoryCallback")), {})
    memory = callback.get("memory") or {}
    return {
        "prototypes": _prototypes(saved["state_dict"], names, int(arguments.get("num_prototypes", 0))),
        "regions": _by_class(names, memory["counts"]) if "counts" in memory else None,
        "diagnostics": plain(callback.get("diagnostics")) or None,
    }


def _prototypes(weights: dict[str, Any], names: list[str], number: int) -> dict[str, Any] | None:
    if "network.aggregation.prototypes" not in weights:
        return None
    own = len(names) * number  # the prototypes of the background come behind
    prototypes, valid = weights["network.aggregation.prototypes"], weights["network.aggregation.valid"]
    ours = prototypes[:own].reshape(len(names), number, -1)  # (L K, D) -> (L, K, D)
    used = valid[:own].reshape(len(names), number)  # (L K) -> (L, K)
    cosines = within_class_cosine(ours, used)
    found: dict[str, Any] = plain(
        {
            "classes_with_one": used.any(dim=1).float().mean(),
            "within_class_cosine": cosines.nanmean(),
            "between_class_cosine": between_class_cosine(ours, used),
            "background": valid[own:].sum(),
            "per_class": _by_class(names, used.sum(dim=1)),
            "within_class_cosine_per_class": _by_class(names, cosines),
        }
    )
    return found


def _by_class(names: list[str], values: torch.Tensor) -> dict[str, Any]:
    """Values by class, the background last where it has one; as many as there are."""
    return dict(zip([*names, "background"], plain(values.tolist()), strict=False))
