"""Checkpoint compatibility: migrates older formats and compares classes and prototype sizes with this run."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn

from rca_lightning.errors import WeightsError
from rca_lightning.io.tensor_file import plain_name
from rca_lightning.version import __version__

logger = logging.getLogger(__name__)

FORMAT = 3
KEY = "rca_lightning_format"
SAVED_AT = "rca_lightning_saved_at"  # seconds since 1970


def migrate(checkpoint: dict[str, Any], *, file: str = "the checkpoint") -> None:
    """Migrates the content of a checkpoint to the current format, in place.

    - Format 0: without a number, else as format 1.
    - Format 1 (0.1): each prototype may have an attention temperature, and pixels may read another context.
    - Format 2: without either; maps are not propagated, the backbone is trained and pads with zeros.
    - Format 3 (0.2): today's. Those without a calibration of tags predict as before.

    Names that `torch.compile` has changed are made plain.

    Args:
        checkpoint: as Lightning wrote it.
        file: its name in error messages.

    Raises:
        WeightsError: for a later format than this version reads, or an invalid format number.
    """
    number = checkpoint.get(KEY, 0)
    if type(number) is not int or number < 0:
        raise WeightsError(f"{file} says {KEY}={number!r}, which is no format; give a checkpoint of rca fit")
    if number > FORMAT:
        raise WeightsError(
            f"{file} has format {number}, rca_lightning {__version__} reads formats up to {FORMAT}; "
            "update rca_lightning, or give an older checkpoint"
        )
    checkpoint["state_dict"] = {plain_name(name): value for name, value in checkpoint["state_dict"].items()}
    if number < 2:
        _migrate_to_2(checkpoint)
    if number < 3 and _CAM_HEAD in checkpoint["state_dict"]:
        for name, value in ADDED.items():
            checkpoint.get("hyper_parameters", {}).setdefault(name, value)
    if _CAM_HEAD in checkpoint["state_dict"]:
        _add_calibration(checkpoint["state_dict"])
    checkpoint[KEY] = FORMAT


ADDED: Mapping[str, Any] = {"propagation_steps": 0, "backbone_mode": "trained"}
"""Arguments of `RCAModule` since format 3, with what modules of before are."""
_CAM_HEAD = "network.coarse_head.conv.weight"


def _add_calibration(weights: dict[str, Tensor]) -> None:
    """Adds the buffers of a `TagCalibration` that is not fitted where there are none."""
    head = weights[_CAM_HEAD]
    if head.ndim == 0:
        return  # of no network; what it is loaded into says so
    values = {
        "weight": head.new_zeros(2),
        "bias": head.new_zeros(len(head)),
        "threshold": head.new_full((len(head),), 0.5),
    }
    for name, value in {**values, "fitted": torch.zeros((), dtype=torch.bool, device=head.device)}.items():
        weights.setdefault(f"tag_calibration.{name}", value)


def _migrate_to_2(checkpoint: dict[str, Any]) -> None:
    """Drops temperatures of single prototypes and the choice of a context; refuses values other than the defaults."""
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


_warn = rank_zero_only(logger.warning)

OnMismatch = Literal["refuse", "rebuild"]
_PROTOTYPES, _VALID = "network.aggregation.prototypes", "network.aggregation.valid"
_SIZES = ("num_prototypes", "background_prototypes")
_STATISTICS = "network.standardization."  # of embeddings, a number a channel
_TEACHER = r"^teacher\.network\."  # a copy of the network in one stage


def differences(checkpoint: Mapping[str, Any], own: Mapping[str, Any], own_state: Mapping[str, Tensor]) -> list[str]:
    """Lists the classes and prototype sizes in which a checkpoint differs from a module, with both values.

    Args:
        checkpoint: its content.
        own: `hparams` of the module.
        own_state: its `state_dict`; without prototypes their sizes are not compared.
    """
    stored = checkpoint.get("hyper_parameters", {})
    values: list[tuple[str, Any, Any]] = []
    if has_other_num_classes(stored, own):
        values.append(("num_classes", stored["num_classes"], own["num_classes"]))
    names = zip(stored.get("class_names") or (), own.get("class_names") or (), strict=False)
    renamed = [(f"class {number}", *pair) for number, pair in enumerate(names, start=1) if pair[0] != pair[1]]
    values += renamed[:1]  # the first says enough
    before, now = checkpoint["state_dict"].get(_PROTOTYPES), own_state.get(_PROTOTYPES)  # (Q, D)
    if before is not None and now is not None:
        values += [
            (size, stored.get(size, own[size]), own[size]) for size in ("num_prototypes", "background_prototypes")
        ]
        values += [("channels of the prototypes", *pair) for pair in zip(before.shape[1:], now.shape[1:], strict=False)]
    return [f"{name} {old!r} in the checkpoint, {new!r} in this run" for name, old, new in values if old != new]


def has_other_num_classes(stored: Mapping[str, Any], own: Mapping[str, Any]) -> bool:
    """Compares the number of classes; with another no weight of the heads can be loaded."""
    return bool(stored.get("num_classes", own["num_classes"]) != own["num_classes"])


def drop_memory(checkpoint: dict[str, Any], module: nn.Module, reasons: Sequence[str]) -> None:
    """Removes memory, prototypes and accumulated maps from a checkpoint, in place.

    Args:
        checkpoint: its content.
        module: the module that it is loaded into; buffers of another size are taken from it.
        reasons: the differences, for the log.
    """
    _warn(f"the memory and the prototypes begin empty (on_mismatch=rebuild): {'; '.join(reasons)}")
    for state in checkpoint.get("callbacks", {}).values():
        if isinstance(state, dict):
            for name in ("memory", "diagnostics", "store"):
                state.pop(name, None)
    weights: dict[str, Tensor] = checkpoint["state_dict"]
    for name, own in module.state_dict().items():
        of_network = re.sub(_TEACHER, "network.", name)
        if of_network in (_PROTOTYPES, _VALID):
            weights[name] = torch.zeros_like(own)
        elif of_network.startswith(_STATISTICS) and name in weights and weights[name].shape != own.shape:
            weights[name] = own.clone()
