"""Checkpoints of `rca fit`: read without running code in them, and only into the network that wrote them."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from rca_lightning.checkpoints.content import content_problems
from rca_lightning.checkpoints.layout import FORMAT, KEY, migrate
from rca_lightning.checkpoints.matching import OnMismatch, differences, forget, new_sizes
from rca_lightning.checkpoints.tensor_file import load_tensors
from rca_lightning.data.restarting import settle
from rca_lightning.errors import ArgumentError, DamagedError, RCAError, WeightsError

if TYPE_CHECKING:
    from typing_extensions import Self

_FILES = ("weights", "weights_sha256")  # arguments that have the network read another file
_KEYWORDS = ("last", "best", "hpc")  # names that Lightning looks up itself
_REGISTRY = re.compile("registry(:.*)?", re.IGNORECASE)  # models that Lightning fetches from a registry
_SHOWN = 3
_OWN_NAMES = {"localize": "network.coarse_head.", "segment": "network.head."}  # weights that one task alone has


def check_checkpoint(path: str, task: str | None = None) -> None:
    """Refuse what is not a checkpoint before anything is built; see `read_checkpoint`.

    Args:
        path: what stands behind `--ckpt_path`; words and folders that Lightning looks up itself pass.
        task: what it must be of, see `check_task`; default any.

    Raises:
        ArgumentError: if there is no such file, or it is the address of one elsewhere.
        WeightsError: if the file is no checkpoint of `rca fit`, or of another task.
    """
    if path in _KEYWORDS or Path(path).is_dir() or (_REGISTRY.fullmatch(path) and not Path(path).is_file()):
        return
    content = read_checkpoint(path, map_location="meta")  # no tensor is read
    if task is not None:
        check_task(content["state_dict"], task)


def read_checkpoint(path: str | Path, map_location: str = "cpu", *, argument: str = "ckpt_path") -> dict[str, Any]:
    """Read a checkpoint of `rca fit`; only tensors and plain values are unpickled.

    Args:
        path: a file on this machine.
        map_location: device of the tensors; `"meta"` reads everything but them.
        argument: what the caller calls the path, for the errors.

    Raises:
        ArgumentError: if there is no such file, or the path is a folder or the address of a file elsewhere.
        DamagedError: if the file is damaged or holds more than tensors.
        WeightsError: if it is not a checkpoint of Lightning, its arguments are not those of a module, or it is of a
            later format; see `migrate`.
    """
    shown = str(path)
    if "://" in shown:
        raise ArgumentError(argument, shown, "checkpoints are not downloaded; fetch the file and give its path here")
    if Path(path).is_dir():
        raise ArgumentError(argument, shown, "this is a folder; give a checkpoint in it")
    if not Path(path).is_file():
        raise ArgumentError(argument, shown, "there is no such file; give a checkpoint of rca fit")
    try:
        content = load_tensors(path, map_location=map_location)
    except Exception as error:  # pickle, zip and torch each have errors of their own for a damaged or hostile file
        raise DamagedError(
            f"{argument}={shown!r} was not loaded: damaged, or more than tensors in it; give a checkpoint of rca fit"
        ) from error
    if not isinstance(content, Mapping) or not {"state_dict", "pytorch-lightning_version"} <= content.keys():
        raise WeightsError(
            f"{argument}={shown!r} is no checkpoint of rca fit; weights of a backbone alone go into --model.weights"
        )
    for problem in content_problems(content):
        raise WeightsError(f"{argument}={shown!r}: {problem}; give a checkpoint of rca fit")
    checkpoint = dict(content)
    migrate(checkpoint, file=f"{argument}={shown!r}")
    return checkpoint


def check_fit(found: Mapping[str, Tensor], needed: Mapping[str, Tensor], arguments: Mapping[str, Any]) -> None:
    """Refuse the tensors of a checkpoint that another network wrote.

    Args:
        found: `state_dict` of the checkpoint.
        needed: `state_dict` of the network.
        arguments: `hyper_parameters` of the checkpoint, by which the message says what it is of.

    Raises:
        WeightsError: if names or shapes differ.
    """
    differences = [f"{name} is missing" for name in needed if name not in found]
    differences += [f"{name} is surplus" for name in found if name not in needed]
    differences += [
        f"{name} {tuple(found[name].shape)} instead of {tuple(value.shape)}"
        for name, value in needed.items()
        if name in found and found[name].shape != value.shape
    ]
    if differences:
        more = f" and {len(differences) - _SHOWN} more" if len(differences) > _SHOWN else ""
        raise WeightsError(
            f"the checkpoint is of another network (backbone={arguments.get('backbone')!r}, "
            f"num_classes={arguments.get('num_classes')!r}): {'; '.join(differences[:_SHOWN])}{more}. "
            "Leave out the arguments that change the network, or give the checkpoint of this one"
        )


def check_task(found: Iterable[str], needed: str) -> None:
    """Refuse the checkpoint of another task.

    Args:
        found: names in the `state_dict` of the checkpoint.
        needed: "localize" or "segment".

    Raises:
        WeightsError: if it is of the other one; a checkpoint of neither passes.
    """
    names = tuple(found)
    for task, prefix in _OWN_NAMES.items():
        if task != needed and any(name.startswith(prefix) for name in names):
            raise WeightsError(
                f"the checkpoint is of the task {task!r}, not of {needed!r}; "
                f"give --task {task}, or a checkpoint of rca fit --task {needed}"
            )


class CheckedLoading(L.LightningModule):
    """A LightningModule that takes checkpoints of its own network only, and no code from them.

    Attributes:
        task: what the command line calls the module.
        on_mismatch: "rebuild" starts with empty prototypes where those of a checkpoint do not fit; see
            `RegionMemoryCallback`, which sets it.
    """

    task: ClassVar[str]
    on_mismatch: OnMismatch = "refuse"

    @property
    def class_names(self) -> list[str]:
        """Names of the `L` classes; their numbers where none were given."""
        names: list[str] | None = self.hparams["class_names"]
        return names or [f"class {index + 1}" for index in range(self.hparams["num_classes"])]

    @classmethod
    def load_from_checkpoint(
        cls,
        checkpoint_path: str | Path | IO[bytes],
        map_location: Any = None,
        hparams_file: str | Path | None = None,
        strict: bool | None = None,
        weights_only: bool | None = True,
        **kwargs: Any,
    ) -> Self:
        """Build the module from a checkpoint; to be called on the class.

        Args:
            checkpoint_path: a checkpoint of `rca fit` on this machine, or an open file.
            map_location: device of the weights, such as `"cpu"`; default: the one they were on.
            hparams_file: YAML file of arguments to use instead of those in the checkpoint.
            strict: whether names must match; they are checked anyway.
            weights_only: False also unpickles classes, which may run any code in the file.
            **kwargs: arguments of the module to use instead of those in the checkpoint.

        Raises:
            ArgumentError: if there is no such file, or it is the address of one elsewhere.
            WeightsError: if the file is damaged, holds more than tensors and plain values, or is of another network.
        """
        if weights_only is not False and isinstance(checkpoint_path, (str, Path)):
            # No tensor is read.
            content = read_checkpoint(checkpoint_path, map_location="meta", argument="checkpoint_path")
            if hparams_file is None:
                cls._try(content, kwargs)
        try:
            return super().load_from_checkpoint(
                checkpoint_path,
                map_location=map_location,
                hparams_file=hparams_file,
                strict=strict,
                weights_only=weights_only is not False,
                **kwargs,
            )
        except RuntimeError as error:  # a tensor is shorter than the head of the file says, which is not read before
            raise WeightsError(f"checkpoint_path={str(checkpoint_path)!r} was not loaded: {error}") from error

    @classmethod
    def _try(cls, content: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Build the network without memory first: the arguments of a checkpoint may ask for any amount of it."""
        named = {**content.get("hyper_parameters", {}), **given}
        known = inspect.signature(cls).parameters
        try:
            with torch.device("meta"):
                network = cls(**{name: value for name, value in named.items() if name in known and name not in _FILES})
            needed = network.state_dict()
        except RCAError:
            raise
        except Exception as error:  # whatever a value of another type leads to
            raise WeightsError(
                f"the arguments in the checkpoint, with those given, make no {cls.__name__} "
                f"({type(error).__name__}: {error}); give a checkpoint of rca fit"
            ) from error
        check_task(content["state_dict"], cls.task)
        check_fit(content["state_dict"], needed, named)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Number the layout; see `migrate`."""
        checkpoint[KEY] = FORMAT

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse the checkpoint of another network or of other classes in one sentence."""
        migrate(checkpoint)
        check_task(checkpoint["state_dict"], self.task)
        arguments = checkpoint.get("hyper_parameters", {})
        others = differences(checkpoint, self.hparams, self.state_dict())
        if others and self.on_mismatch == "rebuild" and not new_sizes(arguments, self.hparams):
            forget(checkpoint, self, others)
        elif others:
            raise WeightsError(
                f"the checkpoint does not fit this run: {'; '.join(others)}. Make them equal, or begin a new training "
                "with the backbone of the checkpoint (--model.weights); where only names of classes or numbers of "
                "prototypes differ, --memory.on_mismatch rebuild goes on training with an empty memory"
            )
        check_fit(checkpoint["state_dict"], self.state_dict(), arguments)
        settle(checkpoint.get("loops", {}).get("fit_loop", {}))
