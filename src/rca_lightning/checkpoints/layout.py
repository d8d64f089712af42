"""The layout of checkpoints: numbered, brought up to date when older, refused when newer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from rca_lightning.errors import WeightsError
from rca_lightning.version import __version__

FORMAT = 1
KEY = "rca_lightning_format"


def migrate(checkpoint: dict[str, Any], *, file: str = "the checkpoint") -> None:
    """Bring the content of a checkpoint to the layout of today, in place.

    - Format 0: checkpoints without a number. Those of a time when prototypes had no attention temperature of their own
      lack `network.aggregation.factors`; they get ones, which is what they were trained with.
    - Format 1: today's.

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


def _to_1(checkpoint: dict[str, Any]) -> None:
    state, prefix = checkpoint["state_dict"], "network.aggregation."
    if f"{prefix}valid" in state:
        valid = state[f"{prefix}valid"]  # (Q,)
        state.setdefault(f"{prefix}factors", torch.ones(valid.shape, device=valid.device))


_STEPS: tuple[Callable[[dict[str, Any]], None], ...] = (_to_1,)  # step i leads from format i to i + 1
