"""Training guards: detection of non-finite losses, a seed for each step, metrics reset before evaluation."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from rca_lightning.data.loaders import run_seed
from rca_lightning.data.sample import Batch
from rca_lightning.distributed import gather_objects, maximum_over_ranks
from rca_lightning.errors import ArgumentError, NonFiniteError
from rca_lightning.rca.standardization import Standardization

logger = logging.getLogger(__name__)


def learns_statistics(part: nn.Module) -> bool:
    """Whether a forward pass changes the running statistics of this layer."""
    return isinstance(part, (_BatchNorm, Standardization)) and part.training


def check_cells(module: nn.Module, images: Tensor, stride: int) -> None:
    """Refuses a training batch of a single cell, of which no normalization layer can learn statistics.

    Args:
        module: with its normalization layers.
        images: `(B, 3, H, W)`.
        stride: pixels of a cell.

    Raises:
        ArgumentError: naming the crop size and the batch size.
    """
    size, count = tuple(images.shape[2:]), len(images)
    if count == 1 and max(size) <= stride and any(map(learns_statistics, module.modules())):
        remedy = f"a batch of a single cell of {stride} pixels has no variance; give a larger crop_size or batch_size"
        raise ArgumentError("crop_size, batch_size", (size, count), remedy)


class RunningStatistics:
    """Copies the running statistics of normalization layers in training mode, to restore them later.

    Example:
        >>> layer = nn.BatchNorm2d(3)
        >>> before = RunningStatistics(layer)
        >>> _ = layer(torch.full((1, 3, 2, 2), torch.nan))
        >>> before.restore()
        >>> layer.running_mean
        tensor([0., 0., 0.])
    """

    def __init__(self, network: nn.Module) -> None:
        learning = [part for part in network.modules() if learns_statistics(part)]
        self._live = [buffer for part in learning for buffer in part.buffers()]
        self._kept = [buffer.clone() for buffer in self._live]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the copied statistics."""
        for live, kept in zip(self._live, self._kept, strict=True):
            live.copy_(kept)


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Sets evaluation mode, then restores the mode of every layer: frozen ones are not in training mode."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training


_SHOWN = 64  # ids of a batch that are written out
_REMEDIES = {
    "pixels": "mend or leave out the photograph",
    "tags": "mend or leave out the photograph",
    "memory": "start from a checkpoint with a sound memory",
}


@dataclass(frozen=True)
class NonFinite:
    """Describes the non-finite tensors of a step.

    Attributes:
        first: name of the first non-finite tensor in the order of computation.
        others: the names after it, in that order.
        culprits: ids of the images of which `first` is not finite; none if its rows are not images.
        batch: ids of all images of the batch.
        remedy: for the error message.
        place: index of `first` in the order of computation.
    """

    first: str
    others: tuple[str, ...]
    culprits: tuple[str, ...]
    batch: tuple[str, ...]
    remedy: str
    place: int

    def __str__(self) -> str:
        of = f" of {_listed(self.culprits)}" if self.culprits else ""
        then = f", then {', '.join(self.others)}" if self.others else ""
        return f"{self.first}{of} not finite{then}, in the batch of {_listed(self.batch)}"


def find_non_finite(batch: Batch, evidence: Mapping[str, Tensor]) -> NonFinite | None:
    """Finds the non-finite tensors among the inputs of a batch and what was computed of them.

    Args:
        batch: `image` `(B, 3, H, W)` unless it has features, `tags` `(B, L)`, `image_id`.
        evidence: tensors by name, in the order of computation; those of `B` rows have one an image.

    Returns:
        The non-finite tensors; `None` if all are finite.
    """
    pixels = {"pixels": batch["image"]} if "image" in batch else {}
    steps = {**pixels, "tags": batch["tags"], **evidence}
    broken = [name for name, value in steps.items() if not bool(torch.isfinite(value).all())]
    if not broken:
        return None
    ids, first = tuple(batch["image_id"]), broken[0]
    culprits: tuple[str, ...] = ()
    if steps[first].ndim >= 2 and len(steps[first]) == len(ids):
        of_image = (~torch.isfinite(steps[first])).flatten(1).any(dim=1).tolist()
        culprits = tuple(image_id for image_id, is_broken in zip(ids, of_image, strict=True) if is_broken)
    remedy = _REMEDIES.get(first, "lower lr, or give trainer.precision bf16-mixed or 32-true where it is 16-mixed")
    return NonFinite(first, tuple(broken[1:]), culprits, ids, remedy, list(steps).index(first))


def broken_weight(module: nn.Module) -> str | None:
    """Name of the first weight that is not finite, running statistics that are being learned aside."""
    for prefix, part in module.named_modules():
        own = list(part.named_parameters(recurse=False))
        if not learns_statistics(part):
            own += part.named_buffers(recurse=False)
        for name, value in own:
            if not bool(torch.isfinite(value).all()):
                return f"{prefix}.{name}" if prefix else name
    return None


def _listed(ids: tuple[str, ...]) -> str:
    more = f" and {len(ids) - _SHOWN} more" if len(ids) > _SHOWN else ""
    return ", ".join(repr(image_id) for image_id in ids[:_SHOWN]) + more


class StepSeedMixin(L.LightningModule):
    """Seeds each training step, so that a resumed run draws the same dropout, also within an epoch.

    Checkpoints of Lightning hold no state of random generators. Here torch's is set before every training batch, from
    the seed of the run, the epoch, the batch and the rank.
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed the step."""
        words = np.random.SeedSequence((run_seed(), self.current_epoch, batch_idx, self.global_rank))
        torch.manual_seed(int(words.generate_state(1, np.uint64)[0]) >> 1)


class MetricResetMixin(L.LightningModule):
    """Resets the metric `evaluation` before validation and test, also after one that was interrupted."""

    evaluation: Any

    def on_validation_epoch_start(self) -> None:
        """Reset the metric."""
        self.evaluation.reset()

    on_test_epoch_start = on_validation_epoch_start


OnNonFinite = Literal["raise", "skip"]

_warn = rank_zero_only(logger.warning)

_NAMED = 10  # skipped batches that are told one by one


class NonFiniteGuard(L.LightningModule):
    """Detects non-finite losses; raises or skips the batch.

    The host reads one number a step, the maximum over the ranks, so that all of them continue, skip or raise together.
    The tensor and the images are looked for only if it is set.

    Its `hparams` have `on_non_finite`. With "skip" a non-finite batch adds nothing to the gradients, to the running
    statistics of BatchNorm and to the memory; an optimizer step whose batches were all skipped changes no weight,
    though the schedule advances. Non-finite weights always raise.

    Attributes:
        skipped_batches: since the module was made; a batch is counted once for all ranks.
    """

    def __init__(self) -> None:
        super().__init__()
        self.skipped_batches = 0
        self._statistics: RunningStatistics | None = None
        self._has_learned = False  # since the last step of the optimiser

    def before_step(self) -> None:
        """Copy the running statistics; to be called before the forward pass."""
        if self.hparams["on_non_finite"] == "skip":
            self._statistics = RunningStatistics(self)

    def should_skip(self, batch: Batch, watched: Mapping[str, Tensor], evidence: Mapping[str, Tensor]) -> bool:
        """Whether to skip the batch; to be called after the forward pass, on every rank.

        Args:
            batch: the input of the step.
            watched: small tensors that are checked in every step, by name.
            evidence: tensors that are checked only to explain a non-finite one, in the order of computation;
                `(B, ...)`, or of another length where rows are not images.

        Raises:
            NonFiniteError: for a non-finite tensor without `on_non_finite="skip"`, or a non-finite weight.
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
        """A loss of 0 with a gradient of 0 for every trained weight.

        DDP exchanges the accumulated gradients in the backward pass of the last batch, and a GradScaler needs the
        gradients of every step, so a skipped batch has to have a loss.
        """
        # The first number is enough: the backward pass reaches the whole weight.
        parts = [weight.flatten()[:1].sum() * 0 for weight in self.parameters() if weight.requires_grad]
        return torch.stack(parts).sum()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skips the optimizer step if every accumulated batch was skipped."""
        if not self._has_learned and self.skipped_batches:
            # Zeros would still move weights by momentum and weight decay; `None` does not.
            for group in optimizer.param_groups:
                for weight in group["params"]:
                    weight.grad = None
        self._has_learned = False

    def on_train_end(self) -> None:
        """Log the number of skipped batches."""
        if self.skipped_batches:
            _warn("%d training batches were left out of this run: not finite", self.skipped_batches)

    def _count(self) -> None:
        if self.hparams["on_non_finite"] == "skip":
            self.log("train/skipped_batches", float(self.skipped_batches), batch_size=1)

    def _tell(self, batch: Batch, evidence: Mapping[str, Tensor]) -> None:
        """Raises or warns, with the same message on every rank."""
        # Gathered, so that all ranks raise: one that raised alone would leave the others waiting.
        told = gather_objects((broken_weight(self), find_non_finite(batch, evidence)))
        weight = next((name for name, _ in told if name is not None), None)
        here = f"step {self.global_step}, epoch {self.current_epoch}, batch {self.trainer.fit_loop.total_batch_idx + 1}"
        if weight is not None:
            raise NonFiniteError(
                f"{weight}: this weight is not finite at {here}; lower lr or give trainer.gradient_clip_val, and start "
                "again from a checkpoint of before"
            )
        reports = [(part, rank) for rank, (_, part) in enumerate(told) if part is not None]
        reports.sort(key=lambda each: each[0].place)  # means over the ranks carry it from one to the others
        text = "; ".join(f"rank {rank}: {part}" if len(told) > 1 else str(part) for part, rank in reports)
        if self.hparams["on_non_finite"] != "skip":
            raise NonFiniteError(f"{text}, at {here}; {reports[0][0].remedy}, or give on_non_finite='skip'")
        if self.skipped_batches < _NAMED:
            more = "; further ones are only counted" if self.skipped_batches == _NAMED - 1 else ""
            _warn("batch left out: %s, at %s%s", text, here, more)
