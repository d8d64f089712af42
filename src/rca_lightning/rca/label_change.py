"""How much of the labels of all photographs changes from one round to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class LabelChange:
    """Share of cells whose label differs from the round before; see `cell_labels`.

    Cells of a photograph that the round before did not have, or had in another number, count as changed, so the share
    of the first round is 1.

    Attributes:
        labels: `(cells,)` uint8 of each photograph by its id, those it had last.

    Example:
        >>> change = LabelChange()
        >>> change.add("beach", torch.tensor([0, 1, 1, 2], dtype=torch.uint8))
        >>> change.share
        1.0
        >>> change.begin_round()
        >>> change.add("beach", torch.tensor([0, 1, 2, 2], dtype=torch.uint8))
        >>> change.share
        0.25
    """

    def __init__(self) -> None:
        self.labels: dict[str, Tensor] = {}
        self.begin_round()

    def begin_round(self) -> None:
        """Counts anew, against the labels there are now."""
        self._cells = self._changed = 0

    def add(self, image_id: str, labels: Tensor) -> None:
        """Compares the labels `(cells,)` of a photograph, once a round, and keeps them."""
        before = self.labels.get(image_id)
        self._cells += len(labels)
        if before is None or before.shape != labels.shape:
            self._changed += len(labels)
        else:
            self._changed += int((before != labels).sum())
        self.labels[image_id] = labels

    @property
    def share(self) -> float:
        """Share of the cells of this round that have changed, in `[0, 1]`; 0 without a cell."""
        return self._changed / max(1, self._cells)

    def state_dict(self) -> dict[str, Any]:
        """Labels and counts as tensors and plain values."""
        none = torch.zeros(0, dtype=torch.uint8)
        return {
            "ids": list(self.labels),
            "sizes": [len(labels) for labels in self.labels.values()],
            "labels": torch.cat([none, *self.labels.values()]),
            "counts": [self._changed, self._cells],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on from a `state_dict`."""
        parts = state["labels"].split(state["sizes"])
        self.labels = {image_id: part.clone() for image_id, part in zip(state["ids"], parts, strict=True)}
        self._changed, self._cells = state["counts"]
