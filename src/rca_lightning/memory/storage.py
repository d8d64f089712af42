"""Where a region memory lives, and in which precision."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError

Placement = Literal["device", "host"]
StoredType = Literal["float32", "float16"]


def check_placement(placement: Placement) -> None:
    """Refuse a name that is none.

    Raises:
        ArgumentError: for an unknown placement.
    """
    if placement not in get_args(Placement):
        raise ArgumentError("placement", placement, "give 'device' or 'host'")


def stored_type(name: StoredType) -> torch.dtype:
    """The dtype of that name.

    Raises:
        ArgumentError: for an unknown one.
    """
    if name not in get_args(StoredType):
        raise ArgumentError("dtype", name, "give 'float32' or 'float16'")
    return torch.float16 if name == "float16" else torch.float32


def placed(tensor: Tensor, device: torch.device, placement: Placement) -> Tensor:
    """The tensor on the device, or for "host" on the processor, page-locked where the device is a CUDA one.

    Only from page-locked memory a copy to the device runs beside computation, and at the full speed of the bus.
    """
    if placement == "device":
        return tensor.to(device)
    tensor = tensor.cpu()
    return tensor.pin_memory() if device.type == "cuda" else tensor
