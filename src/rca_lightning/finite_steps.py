"""Training steps that end in finite numbers, or else are named or left out."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Literal

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from torch.optim import Optimizer

from rca_lightning.data.sample import Batch
from rca_lightning.distributed import gather_objects, maximum_over_ranks
from rca_lightning.errors import NonFiniteError
from rca_lightning.models.running_statistics import RunningStatistics
from rca_lightning.non_finite import NonFinite, broken_weight, find_non_finite

OnNonFinite = Literal["raise", "skip"]

logger = logging.getLogger(__name__)
_warn = rank_zero_only(logger.warning)

_NAMED = 10  # skipped batches that are told one by one


class FiniteSteps(L.LightningModule):
    """A LightningModule whose training steps are checked before anything is learned from them.

    One number a step is read by the host, once the loss has been computed, and in a distributed run it is the maximum
    over the ranks, so all of them go on, leave out or raise together. Which tensor it was, and of which image, is only
    looked for when there is something to find.

    Its `hparams` have `on_non_finite`. With "skip" a batch of which something is not finite adds nothing to the
    gradients, to the running statistics of BatchNorm and to the memory; an optimiser step all of whose batches were
    left out changes nothing, though the schedule goes on. Weights that are not finite are an error all the same: no
    batch will do.

    Attributes:
        skipped_batches: left out since the module was made; in a distributed run those of all ranks count as one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped_batches = 0
        self._statistics: RunningStatistics | None = None
        self._has_learned = False  # since the last step of the optimiser

    def before_step(self) -> None:
        """Remember what the forward pass changes; to be called before it."""
        if self.hparams["on_non_finite"] == "skip":
            self._statistics = RunningStatistics(self)

    def leave_out(self, batch: Batch, watched: Mapping[str, Tensor], evidence: Mapping[str, Tensor]) -> bool:
        """Whether the batch must be left out; to be called with what the step has computed, on every rank.

        Args:
            batch: what it was computed of.
            watched: looked at in every step, so small; by name.
            evidence: looked at only if something watched is not finite, in the order of computation; `(B, ...)`, or
                of another length where rows are not images.

        Raises:
            NonFiniteError: if something is not finite, and such batches are not to be skipped or weights are the cause.
        """
        broken = torch.stack([~torch.isfinite(value).all() for value in watched.values()]).any().to(torch.uint8)
        maximum_over_ranks(broken)
        if not bool(broken):
            self._has_learned = True
            self._count()
            return False
        if self._statistics is not None:
            self._statistics.restore()
        self._tell(batch, {**evidence, **watched})
        self.skipped_batches += 1
        self._count()
        return True

    def no_loss(self) -> Tensor:
        """A loss of 0 with a gradient of 0 for every weight that is trained.

        In place of no loss at all: the ranks exchange the gradients of the batches before it in the last one of an
        accumulation, and a GradScaler wants to see the gradients of every step.
        """
        # The first number is enough: the backward pass reaches the whole weight.
        parts = [weight.flatten()[:1].sum() * 0 for weight in self.parameters() if weight.requires_grad]
        return torch.stack(parts).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Make a step without a usable batch no step: zeros would still move weights by momentum and weight decay."""
        if not self._has_learned and self.skipped_batches:
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = None
        self._has_learned = False

    def on_train_end(self) -> None:
        """Say how many batches were left out."""
        if self.skipped_batches:
            _warn("%d training batches were left out of this run: not finite", self.skipped_batches)

    def _count(self) -> None:
        if self.hparams["on_non_finite"] == "skip":
            self.log("train/skipped_batches", float(self.skipped_batches), batch_size=1)

    def _tell(self, batch: Batch, evidence: Mapping[str, Tensor]) -> None:
        """Raise, or warn; every rank says the same."""
        # Of each rank, also what must be the same on all of them: one that raised alone would leave the others waiting.
        told = gather_objects((broken_weight(self), find_non_finite(batch, evidence)))
        weight = next((name for name, _ in told if name is not None), None)
        here = f"step {self.global_step}, epoch {self.current_epoch}, batch {self.trainer.fit_loop.total_batch_idx + 1}"
        if weight is not None:
            raise NonFiniteError(
                f"{weight}: this weight is not finite at {here}; lower lr or give trainer.gradient_clip_val, and start "
                "again from a checkpoint of before"
            )
        found = [(part, rank) for rank, (_, part) in enumerate(told) if part is not None]
        found.sort(key=lambda each: each[0].place)  # means over the ranks carry it from one to the others
        text = "; ".join(_sentence(part, rank, len(told)) for part, rank in found)
        if self.hparams["on_non_finite"] != "skip":
            raise NonFiniteError(f"{text}, at {here}; {found[0][0].remedy}, or give on_non_finite='skip'")
        if self.skipped_batches < _NAMED:
            more = "; further ones are only counted" if self.skipped_batches == _NAMED - 1 else ""
            _warn("batch left out: %s, at %s%s", text, here, more)


def _sentence(found: NonFinite, rank: int, ranks: int) -> str:
    return f"rank {rank}: {found}" if ranks > 1 else str(found)
