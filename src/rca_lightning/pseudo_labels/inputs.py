"""What may go into the making of a pseudo label: each check says one clear thing."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError

# Averages of values in [0, 1] leave the interval by rounding only.
_ROUNDING = 1e-3


def check_share(name: str, value: float) -> None:
    """Refuse a number outside `[0, 1]`."""
    if not 0 <= value <= 1:
        raise ArgumentError(name, value, "give a number in [0, 1]")


def check_count(name: str, value: int, *, least: int) -> None:
    """Refuse a whole number below `least`."""
    if value < least:
        raise ArgumentError(name, value, f"give {least} or more")


def check_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0 and finite."""
    if not 0 < value < float("inf"):
        raise ArgumentError(name, value, "give a number above 0")


def check_maps(maps: Tensor, *, name: str = "maps", dims: int = 3) -> None:
    """Refuse maps that are not floating, finite and in `[0, 1]`, or have not `dims` axes."""
    _check_layout(maps, name, dims, "(K, H, W)" if dims == 3 else "(B, K, H, W)")
    _check_range(maps, name, "divide each map by its maximum, as max_normalise does")


def check_images(images: Tensor, maps: Tensor, *, name: str = "images") -> None:
    """Refuse images `(..., 3, H, W)` that are not colours in `[0, 1]`, or not of the batch and size of `maps`."""
    _check_layout(images, name, maps.ndim, "(3, H, W)" if maps.ndim == 3 else "(B, 3, H, W)")
    if images.shape[-3] != 3:
        raise ArgumentError(name, tuple(images.shape), "give 3 colours: (3, H, W) for each image")
    check_same_cells(images, maps, name=name)
    _check_range(images, name, "undo the normalisation of the network's input and divide 0..255 by 255")


def check_same_cells(other: Tensor, maps: Tensor, *, name: str) -> None:
    """Refuse a tensor `(..., H, W)` of another batch or size than the maps `(..., K, H, W)`."""
    if other.shape[-2:] != maps.shape[-2:]:
        height, width = maps.shape[-2:]
        raise ArgumentError(name, tuple(other.shape), f"the maps are {height} x {width}; resize one to the other")
    if other.ndim == maps.ndim == 4 and len(other) != len(maps):
        raise ArgumentError(name, tuple(other.shape), f"there are maps for {len(maps)} images; give as many")


def check_finite(values: Tensor, *, name: str) -> None:
    """Refuse NaN and infinity."""
    bad = int((~torch.isfinite(values)).sum())
    if bad:
        raise ArgumentError(name, f"{bad} of {values.numel()} values NaN or infinite", "give finite numbers")


def _check_layout(values: Tensor, name: str, dims: int, layout: str) -> None:
    if values.ndim != dims or not values.is_floating_point():
        raise ArgumentError(name, f"{tuple(values.shape)} {values.dtype}", f"give floating point {layout}")


def _check_range(values: Tensor, name: str, remedy: str) -> None:
    check_finite(values, name=name)
    if values.numel() == 0:
        return
    low, high = (float(bound) for bound in values.aminmax())
    if low < -_ROUNDING or high > 1 + _ROUNDING:
        raise ArgumentError(name, f"values from {low:.4g} to {high:.4g}", f"give values in [0, 1]: {remedy}")
