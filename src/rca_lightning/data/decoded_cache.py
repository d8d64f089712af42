"""Decoded arrays that a process keeps in memory."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import numpy as np

_Value = TypeVar("_Value")
_OVERHEAD = 400  # bytes of the objects around an array


class DecodedCache:
    """What comes first is kept until there is no more room; nothing is ever thrown out.

    In random order the images of an epoch come once each, so throwing out the one that was not used for longest would
    throw out every one before it comes again.

    Args:
        max_mib: room in MiB; 0 keeps nothing.

    Attributes:
        used: bytes that are taken.

    Example:
        >>> cache = DecodedCache(1.0)
        >>> [cache.get("a", lambda: number) for number in (1, 2)]
        [1, 1]
    """

    def __init__(self, max_mib: float) -> None:
        self.max_mib = max_mib
        self.used = 0
        self._kept: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], _Value]) -> _Value:
        """Return what is kept, or make it and keep it if it fits; arrays that are kept become read-only."""
        if key in self._kept:
            found: _Value = self._kept[key]
            return found
        value = make()
        size = _OVERHEAD + (value.nbytes if isinstance(value, np.ndarray) else 0)
        if self.used + size <= self.max_mib * 2**20:
            if isinstance(value, np.ndarray):
                value.setflags(write=False)
            self._kept[key] = value
            self.used += size
        return value

    def __getstate__(self) -> dict[str, Any]:
        return {"max_mib": self.max_mib, "used": 0, "_kept": {}}  # each process keeps its own
