"""Banks of regions whose clusters are known."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F

Bank = Callable[..., tuple[torch.Tensor, np.ndarray]]


@pytest.fixture(scope="session")
def modes() -> Bank:
    """Builder of shuffled unit vectors around far directions, `(N, D)`, and the direction each belongs to."""

    def build(sizes: Sequence[int], dim: int = 32, spread: float = 0.05, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        axes = torch.linalg.qr(torch.randn(dim, len(sizes), generator=generator))[0].T  # orthogonal directions
        truth = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        truth = truth[torch.randperm(len(truth), generator=generator)]
        noise = spread * torch.randn(len(truth), dim, generator=generator)
        return F.normalize(axes[truth] + noise, dim=1), truth.numpy()

    return build
