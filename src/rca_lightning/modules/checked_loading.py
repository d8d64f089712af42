"""Checked loading of checkpoints into a LightningModule: those of its own network only, and no code."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from rca_lightning.arguments import check_arguments
from rca_lightning.checkpoints.compatibility import (
    ADDED,
    FORMAT,
    KEY,
    SAVED_AT,
    OnMismatch,
    differences,
    drop_memory,
    has_other_num_classes,
    migrate,
)
from rca_lightning.checkpoints.reading import check_fit, check_task, read_checkpoint
from rca_lightning.checkpoints.resuming import begin_epoch, match_epoch_end, rewind_to_epoch_end
from rca_lightning.errors import RCAError, WeightsError
from rca_lightning.evaluation.protocol import TagsOnRecord
from rca_lightning.io.tensor_file import plain_name

if TYPE_CHECKING:
    from typing_extensions import Self

_warn = rank_zero_only(logging.getLogger(__name__).warning)

_WEIGHTS, _SUPERVISION = "backbone_weights", "supervision"  # keys of a checkpoint
_FILES = ("weights", "weights_sha256")  # arguments that make the network read another file


class CheckedLoading(L.LightningModule):
    """Base of the modules: loads checkpoints of its own network only, and no code from them.

    Attributes:
        task: name of the task on the command line.
        weights_on_record: name and SHA-256 of the weights that the training began with; `None` if unknown. Checkpoints
            keep them.
        supervision_on_record: whether the training began with maps of another model ("seed_dir"), and whether it was
            trained on the masks of the data set ("masks"); `None` if unknown. Checkpoints keep it.
        trains_on_labels: whether the training batches of the task hold masks, or labels in their place.
        on_mismatch: "rebuild" starts with empty prototypes where those of a checkpoint do not fit; see
            `RegionMemoryCallback`, which sets it.
    """

    task: ClassVar[str]
    on_mismatch: OnMismatch = "refuse"
    weights_on_record: dict[str, str | None] | None = None
    supervision_on_record: dict[str, bool] | None = None
    trains_on_labels: ClassVar[bool] = False

    def __init__(self) -> None:
        super().__init__()
        # A network compiled by assignment has other names; files and comparisons know the plain ones.
        self.register_state_dict_post_hook(_give_plain_names)  # type: ignore[no-untyped-call]
        self.register_load_state_dict_pre_hook(_take_plain_names)  # type: ignore[no-untyped-call]

    @check_arguments
    def protocol_of_maps(self, tags: TagsOnRecord | None) -> dict[str, Any]:
        """What a protocol says of class maps, as arguments of `make_protocol`; nothing, for a module without."""
        return {}

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
        """Builds the module from a checkpoint; to be called on the class.

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
                # Lightning reads the arguments before the checkpoint is migrated.
                migrated = content.get("hyper_parameters", {})
                kwargs = {name: migrated[name] for name in ADDED if name in migrated} | kwargs
                cls._check_network(content, kwargs)
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
    def _check_network(cls, content: Mapping[str, Any], given: Mapping[str, Any]) -> None:
        """Builds the network without memory: the arguments of a checkpoint may ask for any amount of it."""
        check_task(content["state_dict"], cls.task)
        named = {**content.get("hyper_parameters", {}), **given}
        known = _argument_names(cls)
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
        check_fit(content["state_dict"], needed, named)

    def on_fit_start(self) -> None:
        """Warn of a backbone that starts from random weights without having been asked to."""
        super().on_fit_start()
        self._record_supervision()
        backbone: Any = self.get_submodule("network.backbone")
        if not backbone.has_chosen_weights:
            _warn(
                "THE BACKBONE %s STARTS FROM RANDOM WEIGHTS: on photographs its maps will be poor. Give weights of "
                "ImageNet, --model.weights imagenet or --model.weights FILE (in Python weights='FILE'), or weights "
                "'none' to learn from scratch",
                self.hparams["backbone"],
            )

    def _record_supervision(self) -> None:
        """Note what this training learns from; what one before has used counts on."""
        data = getattr(self.trainer, "datamodule", None)
        own = self.trains_on_labels and getattr(data, "train_mask_dir", None) == getattr(data, "mask_dir", None)
        now = {"seed_dir": getattr(data, "seed_dir", None) is not None, "masks": own}
        before = self.supervision_on_record or {}
        self.supervision_on_record = {name: value or before.get(name, False) for name, value in now.items()}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Write the format number, see `migrate`, and the time, by which the latest is found."""
        checkpoint[KEY] = FORMAT
        checkpoint[SAVED_AT] = time.time()
        checkpoint[_WEIGHTS] = self.weights_on_record
        checkpoint[_SUPERVISION] = self.supervision_on_record
        # An averaging callback has put its own weights here.
        checkpoint["state_dict"] = {plain_name(name): value for name, value in checkpoint["state_dict"].items()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Migrate the checkpoint; refuse that of another network or of other classes."""
        migrate(checkpoint)
        self.weights_on_record = _sound_weights(checkpoint.get(_WEIGHTS))
        self.supervision_on_record = _sound_supervision(checkpoint.get(_SUPERVISION))
        check_task(checkpoint["state_dict"], self.task)
        arguments = checkpoint.get("hyper_parameters", {})
        others = differences(checkpoint, self.hparams, self.state_dict())
        if others and self.on_mismatch == "rebuild" and not has_other_num_classes(arguments, self.hparams):
            drop_memory(checkpoint, self, others)
        elif others:
            raise WeightsError(
                f"the checkpoint does not fit this run: {'; '.join(others)}. Make them equal, or begin a new training "
                "with the backbone of the checkpoint (--model.weights); where only names of classes or numbers of "
                "prototypes differ, --memory.on_mismatch rebuild goes on training with an empty memory"
            )
        check_fit(checkpoint["state_dict"], self.state_dict(), arguments)
        try:
            rewind_to_epoch_end(checkpoint.get("loops", {}).get("fit_loop", {}))
        except (AttributeError, KeyError, TypeError) as error:
            raise WeightsError(
                f"the counts of epochs and batches in the checkpoint are damaged ({type(error).__name__}: {error}); "
                "give another checkpoint of rca fit"
            ) from error

    def on_train_start(self) -> None:
        """Go on between two epochs with as many batches as an epoch has now."""
        match_epoch_end(self.trainer)

    def on_train_epoch_start(self) -> None:
        """Begin a whole epoch."""
        begin_epoch(self.trainer)


def _sound_weights(value: Any) -> dict[str, str | None] | None:
    """What a checkpoint says of the weights it began with, if that is a name and a digest."""
    known = isinstance(value, Mapping) and set(value) == {"file", "sha256"}
    if not known or not all(text is None or (isinstance(text, str) and len(text) <= 255) for text in value.values()):
        return None
    return dict(value)


def _sound_supervision(value: Any) -> dict[str, bool] | None:
    """What a checkpoint says of its supervision, if that is what `on_save_checkpoint` writes."""
    known = isinstance(value, Mapping) and set(value) == {"seed_dir", "masks"}
    return dict(value) if known and all(isinstance(one, bool) for one in value.values()) else None


def _argument_names(cls: type) -> set[str]:
    """Names of the arguments of a class, with those that it passes on to its bases as `**options`."""
    names: set[str] = set()
    for base in cls.__mro__:
        if "__init__" not in vars(base):
            continue
        parameters = inspect.signature(vars(base)["__init__"]).parameters
        names.update(parameters)
        if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return names


def _give_plain_names(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + plain_name(name.removeprefix(prefix))] = state.pop(name)


def _take_plain_names(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    own = [name for part in (module.named_parameters(), module.named_buffers()) for name, _ in part]
    by_plain_name = {prefix + plain_name(name): prefix + name for name in own}
    for name in [name for name in state if name.startswith(prefix)]:
        plain = prefix + plain_name(name.removeprefix(prefix))
        value = state.pop(name)
        state[by_plain_name.get(plain, plain)] = value
