"""Values as JSON can hold them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace

_MOST_NUMBERS = 5000  # a diagnostic by class and prototype fits, a memory of embeddings does not


def plain(value: Any) -> Any:
    """Numbers, texts, lists and dicts with text keys; NaN and what cannot be said in these becomes None."""
    if isinstance(value, torch.Tensor):
        return plain(value.tolist()) if value.numel() <= _MOST_NUMBERS else None
    if isinstance(value, Namespace):
        return plain(vars(value))
    if isinstance(value, Mapping):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [plain(part) for part in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, (str, Path)):
        return str(value)
    return value if isinstance(value, int) else None
