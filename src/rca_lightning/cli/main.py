"""The command line: `rca fit | validate | test | predict | atlas | affinity`, and commands without a Trainer."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.callbacks.mask_writer import MaskWriter
from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.cli.affinity import AffinityCLI, task_words
from rca_lightning.cli.atlas import AtlasTrainer
from rca_lightning.cli.console import set_up_console
from rca_lightning.cli.trainer import OneLineParser, Task, TaskCLI, find_task
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError, RCAError
from rca_lightning.modules.affinity_module import AffinityModule
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.version import __version__

# Commands that need no configuration of a Trainer, each in a module whose `main` takes the words after it.
COMMANDS = {
    "masks": "rca_lightning.cli.masks",
    "labels": "rca_lightning.cli.labels",
    "export": "rca_lightning.cli.export",
    "check": "rca_lightning.cli.check",
    "weights": "rca_lightning.cli.weights",
    "convert": "rca_lightning.cli.convert",
    "app": "rca_lightning.cli.app",
    "prompts": "rca_lightning.cli.prompts",
}
EPILOG = (
    "rca masks does all at once: rca masks photographs/ --out masks/. rca affinity learns boundaries that refine maps. "
    "More commands need no Trainer: rca labels (pseudo labels from stored maps), rca convert (label images for COCO, "
    "YOLO, LabelMe and Label Studio), rca export (a trained segmentation network as ONNX or torch.export program), rca "
    "check (whether files for a benchmark server are as it wants them), rca weights (published weights of backbones) "
    "and rca app (a page in the browser that draws the mask of a photograph). Each has a --help of its own."
)


class MemoryCLI(TaskCLI):
    """A task with the region memory."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the region memory."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(RegionMemoryCallback, "memory")

    def before_instantiate_classes(self) -> None:
        """Refuse a second memory, among the callbacks of the Trainer."""
        for callback in self.config.get(f"{self.subcommand}.trainer.callbacks") or ():
            if str(callback.get("class_path", "")).endswith(RegionMemoryCallback.__name__):
                raise ArgumentError("trainer.callbacks", callback["class_path"], "give its arguments under memory:")


class RCACLI(MemoryCLI):
    """Localization from image tags, with the region memory, and the prototype atlas."""

    task = "localize"
    writer = PseudoLabelWriter

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"trainer_class": AtlasTrainer, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """Add `atlas`, whose own arguments are under `--atlas`."""
        return {**LightningCLI.subcommands(), "atlas": {"model", "datamodule", "folder", "regions"}}

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "atlas" and self._named in (None, "atlas"):
            skip: set[str | int] = {"model", "datamodule", "ckpt_path"}
            parser.add_method_arguments(klass, "atlas", "atlas", as_group=False, skip=skip)
        return parser

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the feature cache."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(FeatureCacheCallback, "features")

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "atlas":
            kwargs.update(self.config_init["atlas"]["atlas"])
        return kwargs


class SegmentationCLI(TaskCLI):
    """Segmentation from masks."""

    task = "segment"
    writer = MaskWriter


class FrozenSegmentationCLI(TaskCLI):
    """Segmentation from masks behind a frozen backbone."""

    task = "segment_frozen"
    writer = MaskWriter

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add the arguments of the feature cache."""
        super().add_arguments_to_parser(parser)
        parser.add_lightning_class_args(FeatureCacheCallback, "features")


class OneStageCLI(MemoryCLI):
    """Maps and segmentation at once, from image tags."""

    task = "one_stage"
    writer = MaskWriter


_TASKS: dict[Task, tuple[type[TaskCLI], type[L.LightningModule]]] = {
    "localize": (RCACLI, RCAModule),
    "segment": (SegmentationCLI, SegmentationModule),
    "segment_frozen": (FrozenSegmentationCLI, FrozenSegmentationModule),
    "one_stage": (OneStageCLI, OneStageModule),
    "affinity": (AffinityCLI, AffinityModule),
}


def main(args: ArgsType = None) -> TaskCLI | None:
    """Runs the command line in this process.

    Args:
        args: words after `rca`; default those of the process.

    Returns:
        The CLI object, with `model`, `datamodule` and `trainer`; `None` for a command without a Trainer, and after
        `rca affinity --help`.

    Raises:
        RCAError: for arguments and files that cannot be used.
        SystemExit: for arguments that cannot be parsed.
    """
    set_up_console()
    words = sys.argv[1:] if args is None else args
    if isinstance(words, list) and words and words[0] in COMMANDS:
        importlib.import_module(COMMANDS[words[0]]).main(words[1:])
        return None
    if isinstance(words, list) and words[:1] == ["affinity"]:
        meant = task_words(words[1:])
        if meant is None:
            return None
        if args is None:
            sys.argv[1:] = meant  # Lightning starts further processes with these words
        else:
            args = meant
    torch.set_float32_matmul_precision("high")
    cli, module = _TASKS[find_task(args)]
    return cli(
        module,
        WSSSDataModule,
        args=args,
        seed_everything_default=0,
        save_config_kwargs={"overwrite": True},
        parser_kwargs={"default_env": False, "prog": "rca", "version": __version__, "epilog": EPILOG},
        parser_class=OneLineParser,
    )


def console() -> None:
    """Runs `rca`; an error of the user is reported in one line, without a traceback."""
    try:
        main()
    except RCAError as error:
        sys.exit(f"rca: {error}")
    except (ValueError, MisconfigurationException) as error:
        # jsonargparse wraps the error of a callback or logger in its own, about the types it tried.
        reason = _own_reason(error)
        if reason is None:
            raise
        sys.exit(f"rca: {reason}")


def _own_reason(error: BaseException | None) -> str | None:
    """The message of the first error in the chain that is meant for the user."""
    while error is not None:
        if isinstance(error, (RCAError, ModuleNotFoundError, MisconfigurationException)):
            return str(error)
        error = error.__cause__ or error.__context__
    return None
