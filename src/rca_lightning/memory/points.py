"""The points of many classes as one clean batch."""

from __future__ import annotations

import torch
from torch import Tensor

from rca_lightning.errors import ArgumentError


def as_batch(points: Tensor, valid: Tensor | None) -> tuple[Tensor, Tensor]:
    """Check points and their mask, and bring them to one form.

    Args:
        points: `(C, N, D)`, or `(N, D)` for one class.
        valid: boolean, shaped like `points` without `D`; all points count if `None`.

    Returns:
        Points `(C, N, D)` float32, zero where not valid, and the mask `(C, N)`.

    Raises:
        ArgumentError: for a bad shape, or valid points that are not finite.
    """
    if points.ndim == 2:
        points = points[None]
        valid = valid[None] if valid is not None else None
    if points.ndim != 3:
        raise ArgumentError("points", tuple(points.shape), "give (C, N, D) or (N, D)")
    if valid is None:
        valid = torch.ones(points.shape[:2], dtype=torch.bool, device=points.device)
    if points.shape[1] < 1 or valid.shape != points.shape[:2]:
        shapes = (tuple(points.shape), tuple(valid.shape))
        raise ArgumentError("points, valid", shapes, "give (C, N, D) and (C, N) with at least one point")
    # Unused slots may hold anything; zero keeps them from spreading NaN through masked sums.
    points = points.float()
    if not valid.all():
        points = torch.where(valid[:, :, None], points, points.new_zeros(()))
    # A sum shows that something may be wrong in a tenth of the time.
    if not torch.isfinite(points.sum()) and not torch.isfinite(points).all():
        raise ArgumentError("points", "non-finite", "remove NaN and infinity before clustering")
    return points, valid
