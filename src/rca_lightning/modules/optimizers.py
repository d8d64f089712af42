"""Optimizer and learning-rate schedule for fine-tuning a backbone with new layers, also when training is resumed."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from rca_lightning.arguments import check_arguments
from rca_lightning.checkpoints.latest import without_state
from rca_lightning.errors import ArgumentError, WeightsError

_info = rank_zero_only(logging.getLogger(__name__).info)

OptimizerName = Literal["sgd", "adamw"]
_ARGUMENTS = ("lr", "new_layer_lr_ratio", "weight_decay", "momentum", "poly_power")
_KEPT = ("optimizer_states", "lr_schedulers", "hyper_parameters")
_FINDERS = (LearningRateFinder, BatchSizeFinder)
_OF_FINDERS = (".lr_find_", ".scale_batch_size_")
_ANEW = "begin a new training with the backbone of the checkpoint (--model.weights)"


@check_arguments
def build_optimizer(
    backbone: Iterable[nn.Parameter],
    new_layers: Iterable[nn.Parameter],
    *,
    name: OptimizerName,
    lr: float,
    new_layer_lr_ratio: float,
    weight_decay: float,
    momentum: float,
) -> Optimizer:
    """Builds the optimizer, with the rate of new layers scaled by `new_layer_lr_ratio`; skips frozen parameters."""
    if lr <= 0:
        raise ArgumentError("lr", lr, "give a number above 0")
    groups = [
        {"params": [p for p in backbone if p.requires_grad], "lr": lr},
        {"params": [p for p in new_layers if p.requires_grad], "lr": lr * new_layer_lr_ratio},
    ]
    groups = [group for group in groups if group["params"]]
    if name == "adamw":
        return torch.optim.AdamW(groups, lr=lr, weight_decay=weight_decay)
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)


def poly_decay(optimizer: Optimizer, total_steps: int, power: float) -> LambdaLR:
    """Rate times `(1 - step / total_steps) ** power` (Liu et al., ParseNet; DeepLab), a step at a time."""
    if total_steps < 1:
        raise ArgumentError("total_steps", total_steps, "give at least one training step")
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total_steps) ** power)


def optimizer_and_schedule(module: L.LightningModule, backbone: nn.Module) -> OptimizerLRSchedulerConfig:
    """Builds optimizer and schedule from the `hparams` of a module; weights outside its backbone are new layers."""
    tuned = list(backbone.parameters())
    known = set(tuned)
    optimizer = build_optimizer(
        tuned,
        [weight for weight in module.parameters() if weight not in known],
        name=module.hparams["optimizer"],
        lr=module.hparams["lr"],
        new_layer_lr_ratio=module.hparams["new_layer_lr_ratio"],
        weight_decay=module.hparams["weight_decay"],
        momentum=module.hparams["momentum"],
    )
    steps = module.trainer.estimated_stepping_batches
    if math.isinf(steps):
        remedy = "give it or max_steps: the learning rate decays over all steps, so their number must be known"
        raise ArgumentError("trainer.max_epochs", module.trainer.max_epochs, remedy)
    schedule = poly_decay(optimizer, int(steps), module.hparams["poly_power"])
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class ResumableOptimizer(L.LightningModule):
    """Builds optimizer and schedule; resumes those of a checkpoint with the arguments of this run.

    PyTorch restores rates, weight decay and momentum with the state of an optimizer. Here what this run says wins, so
    that an argument that is given when training goes on acts. The same holds for the rate that Lightning's
    `LearningRateFinder` sets, and for the number of steps after its `BatchSizeFinder`: both restore a checkpoint.
    """

    _restored: dict[str, Any] | None = None  # the checkpoint that training goes on from, until it has begun

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig | None:
        """SGD or AdamW with poly decay, a step at a time; none where nothing is trained by gradients.

        Raises:
            WeightsError: if the state in the checkpoint that training goes on from is not that of this optimizer.
        """
        if not any(weight.requires_grad for weight in self.parameters()):
            self._restored = None
            return None
        built = optimizer_and_schedule(self, self.get_submodule("network.backbone"))
        if self._restored is not None:
            _check_state(self._restored, built["optimizer"])
        return built

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse to train on from weights alone, or with another kind of optimizer."""
        super().on_load_checkpoint(checkpoint)
        if self._trainer is None or self.trainer.state.fn != TrainerFn.FITTING:
            return
        file = Path(str(self.trainer.ckpt_path))
        finders = [one for one in self.trainer.callbacks if isinstance(one, _FINDERS)]  # type: ignore[attr-defined]
        if finders and not file.name.startswith(_OF_FINDERS):
            # It restores what it has saved before, and the state of the checkpoint would not be read.
            remedy = f"it cannot search in a training that goes on from {str(file)!r}; leave it out"
            raise ArgumentError("callbacks", type(finders[0]).__name__, remedy)
        if not {"optimizer_states", "lr_schedulers"} <= checkpoint.keys():
            raise WeightsError(without_state(f"ckpt_path={str(file)!r}"))
        before = checkpoint.get("hyper_parameters", {}).get("optimizer", self.hparams["optimizer"])
        if before != self.hparams["optimizer"]:
            remedy = f"the checkpoint holds the state of {before!r}; give that, or {_ANEW}"
            raise ArgumentError("optimizer", self.hparams["optimizer"], remedy)
        self._restored = {name: checkpoint.get(name, {}) for name in _KEPT}

    def on_train_start(self) -> None:
        """Give the restored optimizer and schedule what the arguments of this run say."""
        super().on_train_start()
        restored, self._restored = self._restored, None
        schedules = [config.scheduler for config in self.trainer.lr_scheduler_configs]
        if restored is None or len(schedules) != 1 or not isinstance(schedules[0], LambdaLR):
            return  # a search for a learning rate, or a subclass with an optimizer of its own
        built: Any = self.configure_optimizers()
        before = restored["hyper_parameters"]
        changed = {
            name: before[name] for name in _ARGUMENTS if before.get(name, self.hparams[name]) != self.hparams[name]
        }
        if changed:
            told = ", ".join(f"{name}={self.hparams[name]} ({old} in the checkpoint)" for name, old in changed.items())
            _info("training goes on with %s", told)
        _follow(schedules[0], built["lr_scheduler"]["scheduler"], options=bool(changed))


def _follow(schedule: LambdaLR, built: LambdaLR, *, options: bool) -> None:
    """Gives a restored schedule the decay of another, and with `options` its optimizer the rates and options too."""
    groups = schedule.optimizer.param_groups
    schedule.lr_lambdas[: len(built.lr_lambdas)] = built.lr_lambdas
    if options:
        for index, (group, new) in enumerate(zip(groups, built.optimizer.param_groups, strict=False)):
            group.update({name: new[name] for name in ("initial_lr", "weight_decay", "momentum") if name in new})
            schedule.base_lrs[index] = new["initial_lr"]
    rates = [
        rate * decay(schedule.last_epoch) for rate, decay in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
    schedule._last_lr = rates


def _check_state(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> None:
    """Compares the state of an optimizer and its schedule in a checkpoint with the weights that are trained now."""
    try:
        problem = next(_state_problems(checkpoint, optimizer), None)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        problem = f"it is damaged ({type(error).__name__}: {error})"
    if problem is not None:
        raise WeightsError(
            f"the state of the optimizer in the checkpoint does not fit this run: {problem}; leave out the arguments "
            f"that change which weights are trained, such as frozen_stages, or {_ANEW}"
        )


def _state_problems(checkpoint: Mapping[str, Any], optimizer: Optimizer) -> Iterator[str]:
    (state,), (schedule,) = checkpoint["optimizer_states"], checkpoint["lr_schedulers"]
    groups, own = state["param_groups"], optimizer.param_groups
    sizes, own_sizes = ([len(group["params"]) for group in some] for some in (groups, own))
    if sizes != own_sizes:
        yield f"it is of {sizes} weights, {own_sizes} are trained now"
    if any(("betas" in group) != ("betas" in new) for group, new in zip(groups, own, strict=False)):
        yield "it is of another kind of optimizer"
    weights = [weight for group in own for weight in group["params"]]
    numbers = [number for group in groups for number in group["params"]]
    for number, weight in zip(numbers, weights, strict=False):
        for name, value in state["state"].get(number, {}).items():
            if isinstance(value, Tensor) and value.ndim and value.shape != weight.shape:
                yield f"{name} {tuple(value.shape)} for a weight {tuple(weight.shape)}"
    if not isinstance(schedule["last_epoch"], int) or len(schedule["base_lrs"]) != len(groups):
        yield "it is damaged (no schedule of the learning rate)"
