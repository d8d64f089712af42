"""Maps of training crops on a grid of their photograph, so that those of different crops can be compared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_FLAT = 1e-5  # a peak below this is no activation, as in `max_normalise`


def grid_size(size: Sequence[int], cells: int) -> tuple[int, int]:
    """Rows and columns of the grid of a photograph: `cells` along its long side, nearly square cells.

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


def onto_photographs(
    maps: Tensor, windows: Tensor, sizes: Sequence[Sequence[int]], *, crop: tuple[int, int], cells: int
) -> Tensor:
    """Sample maps of crops at the cells of their photographs' grids, and divide each by its peak there.

    Cells are read at their centres, bilinearly. The peak is the one within the photograph: what a network sees in the
    padding of a crop has no say.

    Args:
        maps: `(T, h, w)`, not negative, each covering its whole crop.
        windows: `(T, 2, 3)`, from crop to photograph; see `Sample`.
        sizes: T times height and width of the photograph in pixels.
        crop: height and width of the crops in pixels.
        cells: see `grid_size`.

    Returns:
        `(T, cells, cells)` float32 in `[0, 1]`, of which the first rows and columns are the grid of each photograph;
        0 beyond them and outside the crop.
    """
    grids = [grid_size(size, cells) for size in sizes]
    # (T, 2): rows and columns, and the height and width of a cell in pixels
    extent = torch.tensor(grids, dtype=torch.float32).reshape(-1, 2)
    steps = torch.tensor([tuple(size) for size in sizes], dtype=torch.float32).reshape(-1, 2) / extent
    extent, steps = extent.to(maps.device), steps.to(maps.device)
    centres = torch.arange(cells, dtype=torch.float32, device=maps.device) + 0.5
    exists = (centres < extent[:, :1])[:, :, None] & (centres < extent[:, 1:])[:, None, :]  # (T, S, S)
    points = _in_crop(centres * steps[:, 1:], centres * steps[:, :1], windows.float())  # (T, S, S, 2)
    # To [-1, 1] from edge to edge of the crop, as grid_sample wants it.
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
    # Written out: a matrix product may run in TF32, whose 10 bits are too few for pixels.
    determinant = a * d - b * c
    return torch.stack([(d * x - b * y) / determinant, (a * y - c * x) / determinant], dim=-1)
