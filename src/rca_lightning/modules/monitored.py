"""Callbacks that do not fit a run: refused before it begins, not after its first epoch."""

from __future__ import annotations

from collections.abc import Iterable

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from rca_lightning.errors import ArgumentError

_OWN = ("rca_lightning.", "lightning.", "pytorch_lightning.")
_OF_CHECKPOINTS = ("epoch", "step")  # which `ModelCheckpoint` knows by itself


class MonitorGuard(L.LightningModule):
    """Refuses callbacks that monitor a metric which nothing in the run logs.

    Only where all that may log is known, since modules of a subclass and callbacks from elsewhere may log more; and
    scores of a validation that there is not.
    """

    def logged_names(self) -> list[str]:
        """Names of the metrics that `fit` logs from its first epoch on, without those of callbacks."""
        return ["train/skipped_batches"] if self.hparams["on_non_finite"] == "skip" else []

    def validates(self) -> bool:
        """Whether `fit` has validations, and images with a mask to score in them."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        return bool(self.trainer.enable_validation) and not getattr(data, "skips_validation", False)

    def setup(self, stage: str) -> None:
        """Compare what the callbacks monitor with what is logged.

        Raises:
            ArgumentError: for the first name that is not there.
        """
        super().setup(stage)
        if stage == TrainerFn.FITTING:
            self._check_monitors(self.trainer.callbacks)  # type: ignore[attr-defined]

    def _check_monitors(self, callbacks: Iterable[L.Callback]) -> None:
        callbacks = list(callbacks)
        all_known = all(type(part).__module__.startswith(_OWN) for part in (self, *callbacks))
        names = self.logged_names()
        # Callbacks name prefixes only: the rest depends on the optimizer and on what was clustered.
        prefixes = tuple(prefix for callback in callbacks for prefix in getattr(type(callback), "logged_prefixes", ()))
        if any(isinstance(callback, LearningRateMonitor) for callback in callbacks):
            prefixes += ("lr-",)
        for callback in callbacks:
            monitor = getattr(callback, "monitor", None)
            logged = [*names, *_OF_CHECKPOINTS] if isinstance(callback, ModelCheckpoint) else names
            if not isinstance(callback, (EarlyStopping, ModelCheckpoint)) or monitor is None or monitor in logged:
                continue
            never_validated = monitor.startswith("val/") and not self.validates()
            if never_validated or (all_known and not monitor.startswith(prefixes)):
                none = "" if self.validates() else " (nothing is validated: limit_val_batches=0, or no masks)"
                known = f"give one of {', '.join(names)}" if names else "leave the callback out"
                remedy = f"nothing in this run logs it{none}; {known}"
                raise ArgumentError(f"{type(callback).__name__}.monitor", monitor, remedy)
