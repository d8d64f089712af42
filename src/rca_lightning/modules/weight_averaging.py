"""Averaged weights: the buffers of an averaged copy are copied from the module, never averaged."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import StochasticWeightAveraging
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from rca_lightning.errors import ArgumentError

_CURRENT = "current_model_state"  # under which Lightning's `WeightAveraging` stores the weights training goes on with


class AveragedBuffersMixin(L.LightningModule):
    """Keeps the buffers of averaged copies of the module equal to its own.

    Lightning's `WeightAveraging` and `EMAWeightAveraging` average buffers as well. But prototypes of two clusterings
    are in no common order, flags and counts are no real numbers, and statistics are running means already: all are
    copied. `AveragedModel` of torch does so too, unless it is given `use_buffers=True`.
    `StochasticWeightAveraging` leaves buffers alone but for those of BatchNorm, which it learns anew; that is refused
    where BatchNorm is frozen.
    """

    def on_fit_start(self) -> None:
        """Switches the averaging of buffers off.

        Raises:
            ArgumentError: for a callback that would destroy the statistics of frozen layers.
        """
        super().on_fit_start()
        for averaged in self._averaged_models():
            averaged.use_buffers = False  # `AveragedModel` then copies them at each update
        self._copy_buffers()
        frozen = any(isinstance(part, _BatchNorm) and not part.training for part in self.modules())
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if frozen and any(isinstance(callback, StochasticWeightAveraging) for callback in callbacks):
            raise ArgumentError(
                "trainer.callbacks",
                StochasticWeightAveraging.__name__,
                "it would reset the statistics of BatchNorm, which is frozen here; give EMAWeightAveraging or "
                "WeightAveraging, or the model frozen_batchnorm=False and frozen_stages=0",
            )

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Copies the buffers; callbacks have run, so prototypes are those of this step."""
        super().on_train_batch_end(outputs, batch, batch_idx)
        self._copy_buffers()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Copies the buffers, into what the callback has put into the checkpoint too: it holds these tensors."""
        super().on_save_checkpoint(checkpoint)
        self._copy_buffers()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Takes the buffers from the weights that were trained: earlier versions wrote averages of them."""
        averaged, current = checkpoint["state_dict"], checkpoint.get(_CURRENT, {})
        names = [name for name, _ in self.named_buffers() if name in averaged and name in current]
        averaged.update({name: current[name] for name in names})
        super().on_load_checkpoint(checkpoint)  # which may empty the prototypes
        current.update({name: checkpoint["state_dict"][name] for name in names})

    def _averaged_models(self) -> list[AveragedModel]:
        callbacks = getattr(self._trainer, "callbacks", ())  # a module can be saved without ever having been trained
        values = [value for callback in callbacks for value in vars(callback).values()]
        return [value for value in values if isinstance(value, AveragedModel)]

    @torch.no_grad()
    def _copy_buffers(self) -> None:
        for averaged in self._averaged_models():
            for copy, own in zip(averaged.module.buffers(), self.buffers(), strict=True):
                copy.copy_(own)
