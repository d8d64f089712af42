"""Checkpoints of other versions and other runs: the layout brought up to date, and what differs from this run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rca_lightning.errors import WeightsError
from rca_lightning.version import __version__

logger = logging.getLogger(__name__)

FORMAT = 2
KEY = "rca_lightning_format"


def migrate(checkpoint: dict[str, Any], *, file: str = "the checkpoint") -> None:
    """Bring the content of a checkpoint to the layout of today, in place.

    - Format 0: without a number, else as format 1.
    - Format 1 (0.1): each prototype may have an attention temperature, and pixels may read another context.
    - Format 2 (0.2): today's, without either.

    Args:
        checkpoint: as Lightning wrote it; one of today is left as it is.
        file: what it is called in the errors.

    Raises:
        WeightsError: if it is of a later format than this version knows, or its number is none.
    """
    number = checkpoint.get(KEY, 0)
    if type(number) is not int or number < 0:
        raise WeightsError(f"{file} says {KEY}={number!r}, which is no format; give a checkpoint of rca fit")
    if number > FORMAT:
        raise WeightsError(
            f"{file} has format {number}, rca_lightning {__version__} reads formats up to {FORMAT}; "
            "update rca_lightning, or give an older checkpoint"
        )
    for step in _STEPS[number:]:
        step(checkpoint)
    checkpoint[KEY] = FORMAT


def _to_2(checkpoint: dict[str, Any]) -> None:
    """Drops the temperatures of single prototypes and the choice of a context, where they say what is true today."""
    scale = checkpoint["state_dict"].pop("network.aggregation.factors", None)
    if scale is not None and not scale.is_meta and bool((scale != 1).any()):
        raise WeightsError(
            "the checkpoint was trained with concentration=True, gone since 0.2; read it with rca_lightning 0.1"
        )
    context = checkpoint.get("hyper_parameters", {}).pop("context", "prototypes")
    if context != "prototypes":
        raise WeightsError(
            f"the checkpoint was trained with context={context!r}, gone from the library since 0.2; "
            "read it with rca_lightning 0.1, or train anew with experiments/ablation"
        )


# Step i leads from format i to i + 1.
_STEPS: tuple[Callable[[dict[str, Any]], None], ...] = (lambda checkpoint: None, _to_2)


_tell = rank_zero_only(logger.warning)

OnMismatch = Literal["refuse", "rebuild"]
_PROTOTYPES = "network.aggregation."
_EMPTY = tuple(f"{_PROTOTYPES}{name}" for name in ("prototypes", "valid"))
_STATISTICS = "network.standardization."  # of embeddings, a number a channel
_SIZES = ("num_prototypes", "background_prototypes")


def differences(checkpoint: Mapping[str, Any], own: Mapping[str, Any], needed: Mapping[str, Tensor]) -> list[str]:
    """Classes and sizes of prototypes in which a checkpoint differs from a module, each with both values.

    Args:
        checkpoint: its content.
        own: `hparams` of the module.
        needed: its `state_dict`; without prototypes their sizes say nothing.
    """
    found = checkpoint.get("hyper_parameters", {})
    others = _classes(found, own)
    name = f"{_PROTOTYPES}prototypes"  # (Q, D)
    before, now = checkpoint["state_dict"].get(name), needed.get(name)
    if before is not None and now is not None:
        others += [_both(size, found[size], own[size]) for size in _SIZES if found.get(size, own[size]) != own[size]]
        if before.shape[1:] != now.shape[1:]:
            others.append(_both("channels of the prototypes", before.shape[1], now.shape[1]))
    return others


def new_sizes(found: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Whether the heads have another number of classes, so that no weight of theirs can be taken over."""
    return bool(found.get("num_classes", own["num_classes"]) != own["num_classes"])


def forget(checkpoint: dict[str, Any], module: nn.Module, others: Sequence[str]) -> None:
    """Take the memory, the prototypes and accumulated maps out of a checkpoint, in place.

    Args:
        checkpoint: its content.
        module: the module that it is loaded into; buffers of another size are taken from it.
        others: what differs, for the log.
    """
    _tell(f"the memory and the prototypes begin empty (on_mismatch=rebuild): {'; '.join(others)}")
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict):
            for name in ("memory", "diagnostics", "store"):
                state.pop(name, None)
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    for name, own in module.state_dict().items():
        if name in _EMPTY:
            weights[name] = torch.zeros_like(own)
        elif name.startswith(_STATISTICS) and name in weights and weights[name].shape != own.shape:
            weights[name] = own.clone()


def _classes(found: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    others = []
    if new_sizes(found, own):
        others.append(_both("num_classes", found["num_classes"], own["num_classes"]))
    before, now = found.get("class_names"), own.get("class_names")
    if before and now:
        for number, (one, other) in enumerate(zip(before, now, strict=False), start=1):
            if one != other:
                others.append(_both(f"class {number}", one, other))
                break  # the first says enough
    return others


def _both(name: str, found: Any, own: Any) -> str:
    return f"{name} {found!r} in the checkpoint, {own!r} in this run"
