"""Random numbers of the seeding, class by class."""

from __future__ import annotations

import torch
from torch import Tensor


class Draws:
    """Uniform numbers for some of the classes: those they get when all classes draw together.

    So a memory that is clustered a few classes at a time starts from the seeds of one that is clustered whole. Drawn on
    the CPU: the same seed gives the same numbers on every device.

    Args:
        seed: of the generator.
        classes: how many draw together.
        first: the first of those that are wanted.
        wanted: how many of them; `None`: all from `first` on.
    """

    def __init__(self, seed: int, classes: int, first: int = 0, wanted: int | None = None) -> None:
        self._generator = torch.Generator().manual_seed(seed)
        self._classes = classes
        self._rows = slice(first, None if wanted is None else first + wanted)

    def uniform(self, count: int) -> Tensor:
        """The next `count` numbers in `[0, 1)` of each wanted class, `(c, count)` float64."""
        return torch.rand(self._classes, count, generator=self._generator, dtype=torch.float64)[self._rows]
