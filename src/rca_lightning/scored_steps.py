"""Evaluation that begins anew each time."""

from __future__ import annotations

from typing import Any, Protocol, cast

import lightning as L


class Resettable(Protocol):
    """What collects a score."""

    def reset(self) -> None:
        """Forget what was collected."""


class ScoredSteps(L.LightningModule):
    """A LightningModule that scores a split in its attribute `evaluation`.

    An evaluation that was cut short, by an error or by hand, leaves half a score: the next one does not go on with it.
    """

    def on_validation_epoch_start(self) -> None:
        """Forget what an evaluation before has left."""
        cast(Resettable, cast(Any, self).evaluation).reset()

    def on_test_epoch_start(self) -> None:
        """Forget what an evaluation before has left."""
        self.on_validation_epoch_start()
