"""Running maximum over training of the class maps of every photograph."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from rca_lightning.distributed import gather_objects, is_distributed, maximum_over_ranks
from rca_lightning.errors import ArgumentError, DataError, WeightsError
from rca_lightning.rca.cam import max_normalise

_FLAT = 1e-5  # a peak below this is no activation, as in `max_normalise`


def grid_size(size: Sequence[int], cells: int) -> tuple[int, int]:
    """Rows and columns of the grid of a photograph: `cells` along its long side, about square.

    Args:
        size: height and width of the photograph in pixels.
        cells: at least 1.

    Example:
        >>> grid_size((375, 500), 64)
        (48, 64)
    """
    height, width = (int(side) for side in size)
    longest = max(height, width)
    return max(1, round(cells * height / longest)), max(1, round(cells * width / longest))


def crop_maps_to_grids(
    maps: Tensor, windows: Tensor, sizes: Sequence[Sequence[int]], *, crop: tuple[int, int], cells: int
) -> Tensor:
    """Samples maps of crops at the cells of their photographs' grids, and divides each by its peak there.

    Cells are sampled bilinearly at their centres. The peak is the one within the photograph, so activations in the
    padding of a crop do not count.

    Args:
        maps: `(T, h, w)`, not negative, each covering its whole crop.
        windows: `(T, 2, 3)`, affine maps from crop to photograph; see `Sample`.
        sizes: T times height and width of the photograph in pixels.
        crop: height and width of the crops in pixels.
        cells: see `grid_size`.

    Returns:
        `(T, cells, cells)` float32 in `[0, 1]`: the first rows and columns are the grid of each photograph, all beyond
        them and outside the crop is 0.
    """
    grids = [grid_size(size, cells) for size in sizes]
    # (T, 2): rows and columns, and the height and width of a cell in pixels
    extent = torch.tensor(grids, dtype=torch.float32).reshape(-1, 2)
    steps = torch.tensor([tuple(size) for size in sizes], dtype=torch.float32).reshape(-1, 2) / extent
    extent, steps = extent.to(maps.device), steps.to(maps.device)
    centres = torch.arange(cells, dtype=torch.float32, device=maps.device) + 0.5
    exists = (centres < extent[:, :1])[:, :, None] & (centres < extent[:, 1:])[:, None, :]  # (T, S, S)
    points = _in_crop(centres * steps[:, 1:], centres * steps[:, :1], windows.float())  # (T, S, S, 2)
    # grid_sample expects coordinates in [-1, 1] from edge to edge of the crop.
    places = points * 2 / torch.tensor([crop[1], crop[0]], dtype=torch.float32, device=maps.device) - 1
    exists &= (places.abs() <= 1).all(dim=-1)
    sampled = F.grid_sample(maps[:, None].float(), places, padding_mode="border", align_corners=False)[:, 0]
    sampled = sampled * exists
    peaks = sampled.amax(dim=(1, 2), keepdim=True)
    return torch.where(peaks > _FLAT, sampled / peaks.clamp_min(_FLAT), torch.zeros_like(sampled))


def _in_crop(x: Tensor, y: Tensor, windows: Tensor) -> Tensor:
    """Crop coordinates `(T, S, S, 2)` of the columns at `x` and rows at `y`, each `(T, S)`, of the photograph."""
    a, b, left, c, d, top = windows.flatten(1).T[:, :, None, None]
    x, y = x[:, None, :] - left, y[:, :, None] - top
    # No matrix product: it may run in TF32, whose 10 bits are too few for pixels.
    determinant = a * d - b * c
    return torch.stack([(d * x - b * y) / determinant, (a * y - c * x) / determinant], dim=-1)


_MIB = 2**20
_BYTES = 2  # of a float16
_EXCHANGED_VALUES = 2**25  # 64 MiB at a time between ranks

Size = tuple[int, int]
_Key = tuple[str, int]


class AttentionStore:
    """Stores for each photograph and class the elementwise maximum of all its maps, in float16 on the CPU.

    A maximum of rounded numbers does not depend on their order, so the store is the same, bit for bit, for any order
    of the images and any number of processes. No map is dropped for lack of room: one that does not fit is refused.

    This is Online Attention Accumulation (Jiang et al., "Integral Object Mining via Online Attention Accumulation",
    ICCV 2019): during training attention moves over the parts of an object, so the maximum covers more of it than the
    last map.

    Args:
        num_classes: foreground classes `L`.
        cells: cells along the long side of a photograph; see `grid_size`.
        max_mib: room for maps in MiB.

    Raises:
        ArgumentError: fewer than 1 class or 1 cell, or no room.

    Example:
        >>> store = AttentionStore(num_classes=3, cells=2)
        >>> store.update("a", (2, 4), [1], torch.tensor([[[0.5, 0.0]]]))
        >>> store.update("a", (2, 4), [1], torch.tensor([[[0.2, 1.0]]]))
        >>> store.grid("a", 1).tolist()
        [[0.5, 1.0]]
    """

    def __init__(self, num_classes: int, *, cells: int = 64, max_mib: float = 1024) -> None:
        for name, value in (("num_classes", num_classes), ("cells", cells)):
            if value < 1:
                raise ArgumentError(name, value, "give 1 or more")
        if not max_mib > 0:
            raise ArgumentError("max_mib", max_mib, "give a number above 0, such as 1024 for 1 GiB")
        self.num_classes = num_classes
        self.cells = cells
        self.max_mib = max_mib
        self._sizes: dict[str, Size] = {}
        self._maps: dict[_Key, Tensor] = {}
        self._values = 0

    def __len__(self) -> int:
        """Number of photographs with a map."""
        return len(self._sizes)

    def __contains__(self, image_id: str) -> bool:
        """Whether this photograph has a map."""
        return image_id in self._sizes

    @property
    def mib(self) -> float:
        """Size of all maps in MiB."""
        return self._values * _BYTES / _MIB

    def most_mib(self, maps: int) -> float:
        """Size in MiB of so many maps if every photograph is square; others have fewer cells."""
        return maps * self.cells**2 * _BYTES / _MIB

    def check_room(self, maps: int) -> None:
        """Refuses a dataset with so many pairs of image and tag if its maps might not fit.

        Raises:
            ArgumentError: with the room that is enough and the grid that would fit.
        """
        needed = self.most_mib(maps)
        if needed > self.max_mib:
            fitting = math.isqrt(int(self.max_mib * _MIB / (maps * _BYTES)))
            grid = f", or cells={fitting}" if fitting else ""
            raise ArgumentError(
                "max_mib", self.max_mib, f"{maps} maps may take {needed:.1f} MiB; give {math.ceil(needed)} MiB{grid}"
            )

    def update(self, image_id: str, size: Sequence[int], classes: Sequence[int], maps: Tensor) -> None:
        """Updates the stored maps of a photograph by the elementwise maximum with `maps`.

        Args:
            image_id: name of the photograph.
            size: its height and width in pixels.
            classes: `K` class indices.
            maps: `(K, rows, columns)` of `grid_size(size, cells)`, not negative.

        Raises:
            ArgumentError: maps of another size, or no room for them; the store is unchanged then.
            DataError: a photograph of this name had another size.
        """
        height, width = (int(side) for side in size)
        shape = (len(classes), *grid_size((height, width), self.cells))
        if tuple(maps.shape) != shape:
            raise ArgumentError("maps", tuple(maps.shape), f"give {shape} for a photograph of {height} x {width}")
        rounded = maps.detach().to("cpu", torch.float16)
        self._reserve([(image_id, (height, width), int(label)) for label in classes])
        for label, new in zip(classes, rounded, strict=True):
            kept = self._maps[image_id, int(label)]
            torch.fmax(kept, new, out=kept)  # unlike maximum it ignores NaN, which a bad step may give

    def _reserve(self, wanted: Sequence[tuple[str, Size, int]]) -> None:
        """Adds maps of 0 for the pairs that have none yet."""
        for image_id, size, _ in wanted:
            self._check_size(image_id, size)
        new = {(image_id, label): size for image_id, size, label in wanted if (image_id, label) not in self._maps}
        more = sum(math.prod(grid_size(size, self.cells)) for size in new.values())
        if (self._values + more) * _BYTES > self.max_mib * _MIB:
            raise ArgumentError(
                "max_mib",
                self.max_mib,
                f"{len(self._maps)} maps are there and no room for {len(new)} more; "
                f"give more room, or fewer cells than {self.cells}",
            )
        for (image_id, label), size in new.items():
            self._sizes[image_id] = size
            self._maps[image_id, label] = torch.zeros(grid_size(size, self.cells), dtype=torch.float16)
        self._values += more

    def _check_size(self, image_id: str, size: Size) -> None:
        stored = self._sizes.get(image_id, size)
        if stored != size:
            raise DataError(
                f"image_id={image_id!r}: its maps are of a photograph of {stored[0]} x {stored[1]} pixels and this one "
                f"has {size[0]} x {size[1]}; rename one of two images, or give those that were trained on"
            )

    def grid(self, image_id: str, label: int) -> Tensor | None:
        """The stored map of a class, `(rows, columns)` float16 in `[0, 1]`, or `None`."""
        return self._maps.get((image_id, label))

    def read(self, image_id: str, classes: Sequence[int], size: Sequence[int]) -> Tensor | None:
        """Reads the maps of a photograph at its size in pixels.

        Args:
            image_id: its name.
            classes: `K` class indices.
            size: its height and width in pixels.

        Returns:
            `(K, height, width)` float32, each with maximum 1, or all 0 for a class without a map; `None` for a
            photograph without any.

        Raises:
            DataError: if it had another size when the maps were made.
        """
        if image_id not in self:
            return None
        height, width = (int(side) for side in size)
        self._check_size(image_id, (height, width))
        empty = torch.zeros(grid_size((height, width), self.cells), dtype=torch.float16)
        grids = [self._maps.get((image_id, int(label)), empty) for label in classes]
        if not grids:
            return torch.zeros(0, height, width)
        stacked = torch.stack(grids)[None].float()  # (1, K, rows, columns)
        return max_normalise(F.interpolate(stacked, (height, width), mode="bilinear", align_corners=False)[0])

    def merge_over_ranks(self, device: torch.device) -> None:
        """Merges the stores of all ranks, each of which must call it, by their maximum.

        Args:
            device: that the backend exchanges tensors on.

        Raises:
            ArgumentError: on every rank, if the maps of all together do not fit.
        """
        if not is_distributed():
            return
        for wanted in gather_objects([(image_id, self._sizes[image_id], label) for image_id, label in self._maps]):
            self._reserve(wanted)
        keys = sorted(self._maps)
        largest = max(1, _EXCHANGED_VALUES // self.cells**2)
        for start in range(0, len(keys), largest):
            kept = [self._maps[key] for key in keys[start : start + largest]]
            values = _flat(kept).to(device)
            maximum_over_ranks(values)
            _write(kept, values)

    def state_dict(self) -> dict[str, Any]:
        """All maps as tensors and plain values, sorted by image and class."""
        keys, image_ids = sorted(self._maps), sorted(self._sizes)
        rows = {image_id: row for row, image_id in enumerate(image_ids)}
        return {
            "num_classes": self.num_classes,
            "cells": self.cells,
            "image_ids": image_ids,
            "sizes": torch.tensor([self._sizes[image_id] for image_id in image_ids]).reshape(-1, 2),
            "rows": torch.tensor([rows[image_id] for image_id, _ in keys], dtype=torch.int64),
            "labels": torch.tensor([label for _, label in keys], dtype=torch.int64),
            "values": _flat([self._maps[key] for key in keys]),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replaces the maps by those of a `state_dict`.

        Raises:
            ArgumentError: if they are of another number of classes or cells, or do not fit.
            WeightsError: if they are damaged.
        """
        for name in ("num_classes", "cells"):
            if state[name] != getattr(self, name):
                raise ArgumentError(
                    name, getattr(self, name), f"the checkpoint holds maps made with {state[name]}; give that"
                )
        image_ids = state["image_ids"]
        sizes = [(int(height), int(width)) for height, width in state["sizes"].tolist()]
        rows, labels = state["rows"].tolist(), state["labels"].tolist()
        self._sizes, self._maps, self._values = {}, {}, 0
        self._reserve([(image_ids[row], sizes[row], label) for row, label in zip(rows, labels, strict=True)])
        kept = list(self._maps.values())
        if self._values != len(state["values"]):
            raise WeightsError(f"attention maps of {len(state['values'])} cells, not {self._values}: damaged")
        _write(kept, state["values"])


def _flat(maps: Sequence[Tensor]) -> Tensor:
    return torch.cat([one.flatten() for one in maps]) if maps else torch.zeros(0, dtype=torch.float16)


def _write(maps: Sequence[Tensor], values: Tensor) -> None:
    parts = torch.split(values.cpu(), [one.numel() for one in maps])
    for one, part in zip(maps, parts, strict=True):
        one.copy_(part.view_as(one))
