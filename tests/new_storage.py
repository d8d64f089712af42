"""How large the tensors are that a piece of code makes."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NewStorage(TorchDispatchMode):
    """Writes down every tensor made under it that owns storage none of its operands has.

    Attributes:
        made: elements of the new storage, and the operation, largest first.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, str]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        known = {_storage(value) for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)}
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor) and _storage(value) not in known:
                self.made.append((value.untyped_storage().nbytes() // value.element_size(), str(func)))
        self.made.sort(reverse=True)
        return found


def _storage(value: torch.Tensor) -> int:
    return value.untyped_storage()._cdata
