"""Tasks of `rca fit | validate | test | predict | atlas | affinity`, each with its LightningCLI."""

from __future__ import annotations

import sys
from typing import Any

import lightning as L
import torch
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI

from rca_lightning.callbacks.feature_cache import FeatureCacheCallback
from rca_lightning.callbacks.mask_writer import MaskWriter
from rca_lightning.callbacks.pseudo_label_writer import PseudoLabelWriter
from rca_lightning.callbacks.region_memory import RegionMemoryCallback
from rca_lightning.cli.affinity import AffinityCLI, task_words
from rca_lightning.cli.atlas import AtlasTrainer
from rca_lightning.cli.trainer import OneLineParser, Task, TaskCLI, find_task
from rca_lightning.cli.trainer_console import replace_handlers
from rca_lightning.data.datamodule import WSSSDataModule
from rca_lightning.errors import ArgumentError
from rca_lightning.modules.affinity_module import AffinityModule
from rca_lightning.modules.frozen_segmentation_module import FrozenSegmentationModule
from rca_lightning.modules.one_stage_module import OneStageModule
from rca_lightning.modules.rca_module import RCAModule
from rca_lightning.modules.segmentation_module import SegmentationModule
from rca_lightning.version import __version__


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


def run_task(args: ArgsType = None) -> TaskCLI | None:
    """Runs a command with a Trainer; see `rca_lightning.cli.main.main`."""
    replace_handlers()
    words = sys.argv[1:] if args is None else args
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
        parser_kwargs={"default_env": False, "prog": "rca", "version": __version__},
        parser_class=OneLineParser,
    )
